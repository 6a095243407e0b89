"""The tuned handle of an adapter: a frozen base and a few trainable tensors, placed by peft."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.update import Dense, Projected, Update
from edgetune.tune.placement import configuration, place_lora, remove_adapter, trainable


class AdapterTuned:
    """A model with low-rank adapters on its linear layers; only the adapters change.

        y = W x + (alpha / rank) B A x,   B = 0 at the start

    Args:
        model: the base; peft replaces its target modules in place, their weights stay untouched.
        rank: r, at least 1.
        alpha: scaling numerator, > 0.
        seed: seed of A's initial values, the same on every device.

    Raises:
        MissingExtraError: if peft is not installed.
        ModelError: if peft finds no linear layer to adapt.
    Cost: r (inputs + outputs) weights a layer; a snapshot of them for `delta`.
    Source: Hu et al. 2021, arXiv:2106.09685; placement by peft, initial values by `tune.initial`.
    """

    def __init__(self, model: PreTrainedModel, *, rank: int, alpha: float, seed: int) -> None:
        self._peft = place_lora(model, rank=rank, alpha=alpha, seed=seed)
        self._weights = trainable(self._peft)
        self._initial = self._snapshot()
        self._start = self._initial

    @property
    def model(self) -> nn.Module:
        """The adapted module."""
        module: nn.Module = self._peft
        return module

    @torch.no_grad()
    def reset(self, state: Update | None) -> None:
        """Take the adapter tensors of `state`, or the initial ones.

        Raises:
            ModelError: if the state is not this adapter's.
        """
        if isinstance(state, Projected):
            raise ModelError("an adapter cannot take projected coefficients")
        values = self._initial if state is None else state.tensors
        if set(values) != set(self._weights):
            raise ModelError("the adapter tensors do not belong to this model", hint="load its own base")
        for name, weight in self._weights.items():
            weight.copy_(values[name])
        self._start = self._snapshot()

    def keep(self, folder: Path | None = None) -> None:
        """Do nothing: coming back copies the adapter tensors."""

    @torch.no_grad()
    def apply(self, update: Update) -> None:
        """Add one dense step to the adapter tensors."""
        if isinstance(update, Projected):
            raise ModelError("an adapter cannot take projected coefficients")
        for name, change in update.tensors.items():
            self._weights[name].add_(change)

    def delta(self) -> Dense:
        """Return the change of every adapter tensor since the last reset."""
        return Dense({name: weight.detach() - self._start[name] for name, weight in self._weights.items()})

    def state(self) -> Dense:
        """Return a copy of the adapter tensors, on the CPU."""
        return Dense({name: value.cpu() for name, value in self._snapshot().items()})

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the adapter tensors, which require gradients."""
        return iter(self._weights.items())

    def adapter(self) -> dict[str, Any] | None:
        """Return the peft configuration as plain JSON values."""
        return configuration(self._peft)

    def merged(self) -> PreTrainedModel:
        """Fold the adapters into the base weights and return the plain model; the handle ends here."""
        merged: PreTrainedModel = self._peft.merge_and_unload()
        return merged

    def remove(self) -> None:
        """Take the adapters off the base model; the handle ends here."""
        remove_adapter(self._peft)

    def _snapshot(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self._weights.items()}
