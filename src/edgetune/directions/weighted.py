"""A pool whose directions are drawn the likelier, the larger the slopes along them were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgetune.core.keys import stream
from edgetune.core.part import AMPLITUDES, CARRIED, STALE
from edgetune.core.update import Coefficients, Projected, Update, Weighed
from edgetune.directions.discriminative import Discriminative
from edgetune.directions.draw import Fresh, Pool
from edgetune.directions.intervals import Intervals

UNIT, GRADES = 1 << 20, 255
"""Weight of the least amplitude, and the steps from it to the greatest."""


@dataclass(frozen=True, slots=True)
class WeightedPool(Pool):
    """One of K directions, drawn with the probabilities that follow from amplitudes in the server's message.

        p = softmax((A - min A) / (max A - min A)),   in integers, rounded:
        p_j = W_j / sum W,   W_j = 2^20 exp(u_j / 255),   u_j = 255 (A_j - min A) / (max A - min A)

    The likeliest is e times as likely as the least likely. As published, steps along likely directions are no smaller
    for it: the sum of steps is a biased estimate. Corrected, a step is divided by K p_j. Before any amplitude is known,
    and where all are equal, this is `Pool` step for step.

    Args:
        corrected: divide by K p_j.
    Cost: a pass over K numbers a device and round.
    Source: Qin et al. 2024, arXiv:2312.06353, section 4.3 (FedKSeed-Pro); alibaba/FederatedScope branch FedKSeed.
    """

    corrected: bool = False
    name: ClassVar[str] = "weighted"
    options: ClassVar[Mapping[str, str]] = {**Pool.options, "corrected": "corrected"}

    @property
    def needs(self) -> frozenset[str]:
        """Slopes along them, and that devices hear of their amplitudes."""
        return Pool.needs.fget(self) | {AMPLITUDES, CARRIED}  # type: ignore[attr-defined,no-any-return]

    @property
    def refuses(self) -> frozenset[str]:
        """Directions that were drawn by amplitudes which the server no longer has."""
        return frozenset({STALE})

    def settings(self) -> dict[str, object]:
        """Return the options of this part."""
        return {"directions": self.kind.name, "pool": self.size, "corrected": self.corrected}

    def with_option(self, option: str, value: object) -> Any:
        """Return a pool of another kind, size or correction."""
        if option == "corrected":
            return type(self)(self.kind, self.size, self.shared, bool(value))
        return Pool.with_option(self, option, value)

    def draw(
        self, seed: int, round: int, device: int, steps: int, each: int = 1, *, state: Update | None = None
    ) -> list[int]:
        """Return the pool indices of a device's local steps; those of one step differ."""
        weights = _weights(state)
        if weights is None:
            return Pool.draw(self, seed, round, device, steps, each)
        generator = stream(seed, "directions", round, "all" if self.shared else device)
        ends, drawn = np.cumsum(weights), list[int]()
        for _ in range(steps):
            taken = dict[int, None]()
            while len(taken) < each:
                ticket = generator.integers(0, int(ends[-1]))
                taken[int(np.searchsorted(ends, ticket, side="right"))] = None
            drawn += taken
        return drawn

    def corrected_for(self, estimate: Projected, state: Update | None) -> Projected:
        """Return the estimate over K p_j, if that is wanted."""
        weights = _weights(state)
        if weights is None or not self.corrected:
            return estimate
        factors = (weights.sum() / (self.size * weights[estimate.keys])).astype(np.float32)
        return Projected(estimate.keys, (estimate.coefficients * factors).astype(np.float32))


DRAWS: dict[str, type[Fresh] | type[Pool]] = {
    kind.name: kind for kind in (Fresh, Pool, WeightedPool, Discriminative, Intervals)
}
"""Ways to draw directions by the name that recipes use."""


def probabilities(amplitudes: Coefficients) -> npt.NDArray[np.float64]:
    """Return p_j of every direction, float64 [K]."""
    weights = _of(amplitudes)
    return np.full(len(amplitudes), 1 / len(amplitudes)) if weights is None else weights / weights.sum()


def _weights(state: Update | None) -> npt.NDArray[np.int64] | None:
    return _of(state.amplitudes) if isinstance(state, Weighed) else None


def _of(amplitudes: Coefficients) -> npt.NDArray[np.int64] | None:
    """Return W, or None where all are alike."""
    wide = amplitudes.astype(np.float64)
    least, greatest = wide.min(), wide.max()
    if least == greatest:
        return None
    grades = np.floor((wide - least) / (greatest - least) * GRADES + 0.5).astype(np.int64)
    found: npt.NDArray[np.int64] = _table()[grades]
    return found


@cache
def _table() -> npt.NDArray[np.int64]:
    """Return 2^20 exp(u / 255) by decimal arithmetic, which rounds alike everywhere."""
    return np.array([round(UNIT * (Decimal(u) / GRADES).exp()) for u in range(GRADES + 1)], np.int64)
