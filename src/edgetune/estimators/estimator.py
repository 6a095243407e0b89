"""What every estimator can do."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from edgetune.core.batch import Batch, Objective
from edgetune.core.part import Part
from edgetune.core.update import Estimate


class Estimator(Part):
    """From a batch and directions to an estimate of the gradient; implementations are frozen values."""

    __slots__ = ()

    @property
    @abstractmethod
    def directions(self) -> int:
        """Directions that a step takes; 1 where there are none."""

    @property
    @abstractmethod
    def passes(self) -> int:
        """Forward passes that a step costs; a backward pass counts as two."""

    @property
    def adds(self) -> bool:
        """Whether an estimate of a batch is the mean of those of its parts, weighed as the objective does."""
        return False

    @property
    def differentiates(self) -> bool:
        """Whether it takes derivatives along directions of weights, which the model must hold for that."""
        return False

    def scale(self, slope: float) -> float:
        """Return the rate of steps along this estimate as a multiple of that along mean slopes of some size."""
        return 1.0

    @abstractmethod
    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the mean objective and the estimate."""
