"""What every local optimiser can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.part import Part
from edgetune.core.tuned import Tuned
from edgetune.core.update import Projected, Update


class Optimiser(Part):
    """From an estimate to a step; implementations are frozen values, their state is plain tensors by name."""

    __slots__ = ()
    lr: float
    caution: ClassVar[float] = 1 / 2
    """Share of the best first step's rate that a run may take: half of it costs little, twice may cost the run."""

    @abstractmethod
    def start(self, tuned: Tuned) -> dict[str, torch.Tensor]:
        """Return the state before the first step."""

    @abstractmethod
    def step(self, tuned: Tuned, estimate: Update, state: dict[str, torch.Tensor], rate: float = 1.0) -> None:
        """Apply one step to the handle; `rate` scales the learning rate of this step."""

    def change(self, slopes: Projected, rates: Sequence[float]) -> Projected:
        """Return what steps along these slopes add up to, for whoever only hears of the slopes.

        Args:
            slopes: one coefficient a direction of a step, in the order of the steps.
            rates: the factor of each one's step.

        Raises:
            ConfigError: if steps are not slopes times a rate.
        """
        raise ConfigError(f"the steps of {self.title} do not follow from slopes alone")

    def reach(self, gradient: Update) -> float:
        """Return how far a step of rate 1 along a gradient moves a weight, root mean square.

        Args:
            gradient: dense, or of a pool whose directions are signs.
        """
        return gradient.size

    def scale(self, slope: float) -> float:
        """Return this optimiser's rate as a multiple of plain descent's, where slopes are of some size."""
        return 1.0
