"""A model's own parameters as what is tuned: all of them, or its biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.tuned import Space
from edgetune.tune.dense import DenseTuned
from edgetune.tune.placed import Placed
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.target import Placing


class OwnPlaced(Placed):
    """Parameters that the model has anyway; nothing is put on it.

    Args:
        model: the base, which becomes the tuned model.
        chosen: whether a parameter of a name is tuned.
        said: what a ledger says.
    """

    def __init__(
        self, model: PreTrainedModel, chosen: Callable[[str], bool], said: Mapping[str, Any]
    ) -> None:
        weights = {
            name: one for name, one in model.named_parameters() if one.is_floating_point() and chosen(name)
        }
        super().__init__(model, weights, said)
        self._model = model

    def plain(self) -> PreTrainedModel:
        """Return the model: its weights are the tuned ones."""
        self.remove()
        return self._model

    def remove(self) -> None:
        """Let the weights need no gradients again."""
        for weight in self.weights.values():
            weight.requires_grad_(False)


def need_float32(placed: Placed) -> Placed:
    """Refuse weights to which gradients' steps would be added in half precision, where small ones are lost.

    Raises:
        ModelError: naming the type.
    """
    narrow = {weight.dtype for weight in placed.weights.values()} - {torch.float32}
    if narrow:
        kind = str(narrow.pop()).removeprefix("torch.")
        raise ModelError(
            f"weights of the type {kind} lose the steps that gradients take",
            hint="--set model.dtype=float32, or tune an adapter (method.target = lora)",
        )
    return placed


@dataclass(frozen=True, slots=True)
class BitFit(Placing):
    """The model's biases; where it has none (Llama, Gemma), the scales of its norms.

        y = W x + b: b is tuned;   y = g x / |x|: g is tuned

    Cost: a thousandth of the weights or less.
    Source: Ben Zaken et al. 2022, arXiv:2106.10199, for models with biases.
    """

    name: ClassVar[str] = "bitfit"

    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Choose the biases, or where there are none, the other vectors; seed and base play no part.

        Raises:
            ModelError: if the model has neither.
        """
        biases = _biases(model)
        if not biases:
            raise ModelError("this model has neither biases nor scales of norms", hint="tune lora")
        return OwnPlaced(model, lambda name: name in biases, {"peft_type": "BITFIT"})

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> BitFit:
        """Return the target of a ledger."""
        return cls()

    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> DenseTuned | ProjectedTuned:
        """Return the tuned handle.

        Raises:
            ModelError: as `place`, or if gradients would move half-precision weights.
        """
        if space is None:
            return DenseTuned(need_float32(self.place(model, seed, base)))
        return Placing.open(self, model, space, seed, base)


def _biases(model: nn.Module) -> set[str]:
    named = {name: one for name, one in model.named_parameters() if one.is_floating_point()}
    biases = {name for name in named if name.rsplit(".", 1)[-1] == "bias"}
    return biases or {name for name, one in named.items() if one.ndim == 1}
