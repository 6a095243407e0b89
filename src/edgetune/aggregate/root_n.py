"""One step along every slope that arrived, scaled by the root of their number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgetune.aggregate.aggregator import Aggregator, Memory, check_rate, ordered
from edgetune.core.part import EVERY_SLOPE, FACTOR, HELD
from edgetune.core.update import Contribution, Projected, Update


@dataclass(frozen=True, slots=True)
class RootN(Aggregator):
    """Every device's slopes, of one point, in one step of the server.

        w <- w - (lr / sqrt(n)) sum_i g_i z_i      over the n slopes that arrived, by device and step

    A slope of zero is one of the n; a slope that is no number has not arrived. Independent directions add up like the
    sides of a right angle, so that a step is about as long whatever n is. Devices of many examples count no more.

    Args:
        lr: learning rate, from 1e-12 to 1e6.

    Raises:
        ConfigError: if lr is outside.
    Cost: n numbers.
    Source: Zelikman et al. 2023, arXiv:2306.10015 (Just One Byte); ezelikman/justonebyte.
    """

    lr: float
    name: ClassVar[str] = "root_n"
    options: ClassVar[Mapping[str, str]] = {"learning_rate": "lr"}

    def __post_init__(self) -> None:
        check_rate(self.lr)

    @property
    def gives(self) -> frozenset[str]:
        """A factor that whoever counts the slopes knows."""
        return frozenset({FACTOR})

    @property
    def needs(self) -> frozenset[str]:
        """Every slope, at the weights that the round began with."""
        return frozenset({EVERY_SLOPE, HELD})

    def factor(self, count: int) -> float:
        """Return -lr / sqrt(n)."""
        return -self.lr / math.sqrt(max(1, count))

    def scale(self, slope: float, count: int) -> float:
        """Return 1 / sqrt(n): plain descent takes the mean of n slopes."""
        return 1 / math.sqrt(count)

    def combine(self, contributions: Sequence[Contribution], state: Update, memory: Memory) -> Update | None:
        """Return the step, or None if no slope arrived."""
        slopes = Projected.chain(
            [one.update for one in ordered(contributions) if isinstance(one.update, Projected)]
        )
        if not len(slopes.keys):
            return None
        factor = np.float32(self.factor(len(slopes.keys)))
        return Projected(slopes.keys, (slopes.coefficients * factor).astype(np.float32))
