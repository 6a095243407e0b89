"""The tuned handle of gradients: any set of tensors placed on a model, moved by dense updates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.pieces import Layer, Piece, pieces
from edgetune.core.residual import residuals, trained
from edgetune.core.update import Dense, Projected, Update
from edgetune.tune.placed import Placed


class DenseTuned:
    """A model of which a few tensors change, or all: factors, a prefix, biases, an adapter, weights.

    Its state holds their values, not their change, and what a server added to the base beneath them.

    Args:
        placed: the model and its tuned tensors.

    Cost: two snapshots of the tuned tensors, the initial one and that of the last reset.
    """

    def __init__(self, placed: Placed) -> None:
        self.placed, self._weights = placed, placed.weights
        self._initial = self._snapshot()
        self._start, self._residuals = self._initial, dict[str, torch.Tensor]()
        self._beneath = self._residuals
        self._only: dict[str, list[Piece]] | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The tuned tensors by depth."""
        return self.placed.layers

    @contextmanager
    def only(self, layers: Sequence[Layer]) -> Iterator[None]:
        """While entered, nothing but these layers moves, and gradients are taken of no tensor that is none of theirs.

        So a backward pass ends at the lowest of them.
        """
        self._only = {}
        for piece in pieces(layers):
            self._only.setdefault(piece.name, []).append(piece)
        try:
            for name, weight in self._weights.items():
                weight.requires_grad_(name in self._only)
            yield
        finally:
            self._only = None
            for weight in self._weights.values():
                weight.requires_grad_(True)

    @property
    def model(self) -> nn.Module:
        """The module with the tuned tensors."""
        return self.placed.model

    def begin(self, state: Dense) -> None:
        """Take a state in place of the initial one, from now on.

        Raises:
            ModelError: as `reset`.
        """
        self.reset(state)
        self._initial, self._beneath = self._start, self._residuals

    @torch.no_grad()
    def reset(self, state: Update | None) -> None:
        """Take the tensors of `state`, or the initial ones, and carry its residuals.

        Raises:
            ModelError: if the state is not of these tensors.
        """
        if isinstance(state, Projected):
            raise ModelError("tensors that gradients move cannot take projected coefficients")
        values = self._initial if state is None else trained(state).tensors
        added = self._beneath if state is None else residuals(state)
        shapes = {name: weight.shape for name, weight in self._weights.items()}
        if {name: one.shape for name, one in values.items()} != shapes:
            raise ModelError("the tuned tensors do not belong to this model", hint="load its own base")
        self.placed.carry(added)
        for name, weight in self._weights.items():
            weight.copy_(values[name])
        self._start, self._residuals = self._snapshot(), added

    def keep(self, folder: Path | None = None) -> None:
        """Do nothing: coming back copies the tensors."""

    @torch.no_grad()
    def apply(self, update: Update) -> None:
        """Add one dense step to the tensors."""
        if isinstance(update, Projected):
            raise ModelError("tensors that gradients move cannot take projected coefficients")
        for name, change in update.tensors.items():
            for piece in [Piece(name)] if self._only is None else self._only[name]:
                piece.of(self._weights[name]).add_(piece.of(change))

    def delta(self) -> Dense:
        """Return the change of every tensor since the last reset, of those that may move."""
        return Dense({name: weight.detach() - self._start[name] for name, weight in self.named_weights()})

    def state(self) -> Dense:
        """Return a copy of the tensors and the residuals, on the CPU."""
        return Dense({name: one.cpu() for name, one in (self._snapshot() | self._residuals).items()})

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tuned tensors that require gradients."""
        return (
            (name, one) for name, one in self._weights.items() if self._only is None or name in self._only
        )

    def adapter(self) -> dict[str, Any] | None:
        """Return what was placed, as plain JSON values."""
        return self.placed.configuration()

    def merged(self) -> PreTrainedModel:
        """Return the model with everything folded in that can be; the handle ends here."""
        return self.placed.plain()

    def remove(self) -> None:
        """Take everything off the base model; the handle ends here."""
        self.placed.remove()

    def _snapshot(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self._weights.items()}
