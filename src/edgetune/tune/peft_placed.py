"""Adapters that peft placed, with residuals of the base beneath low-rank factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.pieces import Layer
from edgetune.core.residual import formed, misfit
from edgetune.tune.layers import by_columns
from edgetune.tune.placed import Placed
from edgetune.tune.placement import configuration, remove_adapter, trainable

BASE = "base_model.model."
"""What peft puts before the names of a model's modules."""


class PeftPlaced(Placed):
    """An adapter of `placement.place_lora` or `placement.place_prefix`.

        y = (W + s R) x + s B A x,   R = 0 unless a server adds one

    Args:
        model: peft's.
        initial: what the initial values follow from, and settings that peft's configuration lacks.
        base: the stored weights; where they are not given, layers that carry a residual are copied.
    """

    def __init__(
        self,
        model: Any,
        initial: Mapping[str, Any] | None = None,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__(model, trainable(model), {**configuration(model), **(initial or {})})
        self._peft, self._base = model, base or {}
        self._copies = dict[str, torch.Tensor]()
        self._carried = dict[str, torch.Tensor]()

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The tuned tensors by depth; a prefix is one tensor, keys and values of layer after layer in its columns."""
        count = self._said.get("num_layers")
        if count is None:
            return super().layers
        ((name, weight),) = self.weights.items()
        return by_columns(name, weight.shape[-1], int(count))

    def plain(self) -> PreTrainedModel:
        """Fold low-rank factors into the weights; else return peft's model."""
        merges = hasattr(self._peft.base_model, "merge_and_unload")
        model: PreTrainedModel = self._peft.merge_and_unload() if merges else self._peft
        return model

    def remove(self) -> None:
        """Take the adapter off; nothing is merged, not even zeros."""
        self.carry({})
        remove_adapter(self._peft)

    @torch.no_grad()
    def carry(self, residuals: Mapping[str, torch.Tensor]) -> None:
        """Let the base's weights be W + s R, formed in float32 from the stored ones and rounded once.

        Raises:
            ModelError: if a residual is of no adapted layer.
        """
        if wrong := misfit(residuals, self.weights):
            raise ModelError("a residual belongs to no adapted layer of this model", where=wrong)
        if _same(residuals, self._carried):
            return
        sums = formed(residuals)
        for stem in {name.partition(".residual")[0] for name in self._carried} | set(sums):
            layer = self._peft.get_submodule(stem)
            stored = self._stored(stem, layer.base_layer.weight)
            if stem not in sums:
                layer.base_layer.weight.copy_(stored)
                continue
            change = sums[stem].to(layer.base_layer.weight.device)
            if getattr(layer, "fan_in_fan_out", False):  # GPT-2 keeps [inputs, outputs]
                change = change.T
            scaled = stored.to(change.device).float() + layer.scaling["default"] * change
            layer.base_layer.weight.copy_(scaled)
        self._carried = dict(residuals)

    def _stored(self, stem: str, weight: torch.Tensor) -> torch.Tensor:
        name = f"{stem.removeprefix(BASE)}.weight"
        if name in self._base:
            return self._base[name]
        if stem not in self._copies:
            self._copies[stem] = weight.detach().clone()
        return self._copies[stem]


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
