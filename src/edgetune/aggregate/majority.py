"""One step a direction, of one length, to the side that most devices are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgetune.aggregate.aggregator import Aggregator, Memory, check_rate
from edgetune.core.part import EVERY_SLOPE, FACTOR, HELD, SHARED, slopes_as
from edgetune.core.update import Contribution, Projected, Update


@dataclass(frozen=True, slots=True)
class MajoritySign(Aggregator):
    """The majority of the signs of slopes.

        w <- w - lr sum_i v_i z_i,   v_i = 1 if as many devices as not have g_i >= 0, else -1

    A tie counts as 1. A direction along which no device has a slope does not move. All devices have one vote, so that
    whatever fewer than half of the voters say moves nothing that the others agree on.

    Args:
        lr: length of a step in units of a direction, from 1e-12 to 1e6.

    Raises:
        ConfigError: if lr is outside.
    Cost: one number a direction and device.
    Source: Cai et al. 2025, arXiv:2501.17610 (FeedSign).
    """

    lr: float
    name: ClassVar[str] = "majority_sign"
    options: ClassVar[Mapping[str, str]] = {"learning_rate": "lr"}

    def __post_init__(self) -> None:
        check_rate(self.lr)

    @property
    def gives(self) -> frozenset[str]:
        """Steps that are a sign times a known length."""
        return frozenset({FACTOR, slopes_as("sign")})

    @property
    def needs(self) -> frozenset[str]:
        """Every slope, along the same directions and at the same weights on all devices."""
        return frozenset({EVERY_SLOPE, HELD, SHARED})

    def factor(self, count: int) -> float:
        """Return -lr."""
        return -self.lr

    def scale(self, slope: float, count: int) -> float:
        """Return the slope over the directions: a step is as long along each of them as plain descent's."""
        return slope / count

    def combine(self, contributions: Sequence[Contribution], state: Update, memory: Memory) -> Update | None:
        """Return the step, or None if nobody voted."""
        updates = [one.update for one in contributions if isinstance(one.update, Projected)]
        votes = Projected.chain(
            [
                Projected(one.keys, np.where(one.coefficients >= 0, 1, -1).astype(np.float32))
                for one in updates
            ]
        ).merged()
        if not len(votes.keys):
            return None
        factor = np.float32(self.factor(len(votes.keys)))
        return Projected(votes.keys, np.where(votes.coefficients >= 0, factor, -factor).astype(np.float32))
