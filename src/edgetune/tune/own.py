"""A model's own parameters as what is tuned: all of them, the matrices of linear layers, or the biases."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from edgetune.core.errors import ModelError
from edgetune.core.tuned import Space
from edgetune.tune.dense import DenseTuned
from edgetune.tune.placed import Placed
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.projected_adapter import ProjectedAdapter
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


@dataclass(frozen=True, slots=True)
class LinearLayers(Placing):
    """The matrices of linear layers, and neither norms, biases nor embeddings: what a low-rank adapter can hold.

        y = W x + b: W is tuned

    A head that is the embedding table once more is left out too. Along directions of rank one the ledger is then an
    adapter without loss (`edgetune adapter`).

    Cost: as all weights.
    """

    name: ClassVar[str] = "linear"

    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Choose the matrices; seed and base play no part.

        Raises:
            ModelError: if the model has no linear layer.
        """
        chosen = _matrices(model)
        if not chosen:
            raise ModelError("this model has no linear layers", hint="tune all weights")
        return OwnPlaced(model, lambda name: name in chosen, {"peft_type": "LINEAR"})

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> LinearLayers:
        """Return the target of a ledger."""
        return cls()

    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> DenseTuned | ProjectedTuned:
        """Return the tuned handle; with directions, `base` saves a copy of the weights.

        Raises:
            ModelError: as `place`, or if gradients would move half-precision weights.
        """
        placed = self.place(model, seed, base)
        return DenseTuned(need_float32(placed)) if space is None else ProjectedAdapter(placed, space, base)


def _matrices(model: nn.Module) -> set[str]:
    tables = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    linear = {id(one.weight) for one in model.modules() if isinstance(one, nn.Linear | Conv1D)} - tables
    return {name for name, one in model.named_parameters() if id(one) in linear and one.is_floating_point()}


def _biases(model: nn.Module) -> set[str]:
    named = {name: one for name, one in model.named_parameters() if one.is_floating_point()}
    biases = {name for name in named if name.rsplit(".", 1)[-1] == "bias"}
    return biases or {name for name, one in named.items() if one.ndim == 1}
