"""No local step: a device measures slopes where the server is, and the server takes the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.core.part import HELD, LINEAR, RATED, SLOPES, STALE
from edgetune.core.tuned import Tuned
from edgetune.core.update import Projected, Update
from edgetune.updates.optimiser import Optimiser


@dataclass(frozen=True, slots=True)
class Hold(Optimiser):
    """Stay where the round began.

        w <- w

    Every slope of a round is of the same weights, each on records of its own.

    Cost: nothing.
    """

    name: ClassVar[str] = "hold"

    @property
    def gives(self) -> frozenset[str]:
        """Weights that a device does not move."""
        return frozenset({HELD, LINEAR})

    @property
    def needs(self) -> frozenset[str]:
        """Slopes: gradients of a whole round are one, by a larger batch."""
        return frozenset({SLOPES})

    @property
    def refuses(self) -> frozenset[str]:
        """A schedule, of which the server's step would know nothing, and slopes of other weights than the round's."""
        return frozenset({RATED, STALE})

    def start(self, tuned: Tuned) -> dict[str, torch.Tensor]:
        """Return the state: none."""
        return {}

    def step(self, tuned: Tuned, estimate: Update, state: dict[str, torch.Tensor], rate: float = 1.0) -> None:
        """Do nothing."""

    def change(self, slopes: Projected, rates: Sequence[float]) -> Projected:
        """Return the slopes as they are: the server's own rate is all there is."""
        return slopes
