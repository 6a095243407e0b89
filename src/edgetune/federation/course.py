"""How the held-out loss of a run goes: which round is the best, and whether the run climbs away from it."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

from edgetune.core.events import Stopped

TENTH, LEAST = 0.1, 0.02
"""How far above the best a loss must be to count as climbing: a part of the best, and nats."""


class Course:
    """The held-out losses of a run, round by round, on the same records.

    A run climbs if two evaluated rounds in succession lie clearly above the best before them, and the second is above
    the first or clearly above the base; or if a loss is NaN or infinite.

        clearly: more than max(0.1 best, 0.02) nats

    Good runs go up and down by some hundredths of their loss, diverging ones double it in a round or two.

    Args:
        start: held-out loss of the base; NaN if it was not measured.
        losses: of earlier rounds of this run, by number.
        stopped: how this run ended, if it went back to its best round.
    """

    def __init__(
        self,
        start: float = math.nan,
        losses: Mapping[int, float] | None = None,
        stopped: Stopped | None = None,
    ) -> None:
        self.start, self.stopped, self._losses = start, stopped, dict(losses or {})
        self._begin()

    def _begin(self) -> None:
        self.best, self.best_round = (self.start if math.isfinite(self.start) else math.inf), 0
        self._above = list[float]()

    def resume(self, round: int, kept: Container[int]) -> None:
        """Take the earlier losses up to a round.

        Args:
            round: the last complete one.
            kept: rounds whose ledgers are there to go back to; where the best is none of them, this one counts as best.
        """
        self._begin()
        for number in sorted(self._losses):
            if number <= round:
                self.take(number, self._losses[number])
        if self.best_round and self.best_round not in kept:
            self.best, self.best_round, self._above = self._losses.get(round, math.inf), round, []

    def take(self, round: int, loss: float) -> None:
        """Note the loss after a round."""
        if loss < self.best:
            self.best, self.best_round, self._above = loss, round, []
        elif loss <= self.best + _margin(self.best):
            self._above = []
        else:
            self._above.append(loss)

    @property
    def climbs(self) -> bool:
        """Whether the run should not go on."""
        if not self._above:
            return False
        last = self._above[-1]
        if not math.isfinite(last):
            return True
        above_base = last > self.start + _margin(self.start)
        return len(self._above) > 1 and (last > self._above[-2] or above_base)

    @property
    def last(self) -> float:
        """The last loss that lay clearly above the best; NaN if none does."""
        return self._above[-1] if self._above else math.nan


def _margin(loss: float) -> float:
    return max(TENTH * abs(loss), LEAST)
