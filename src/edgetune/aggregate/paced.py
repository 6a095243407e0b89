"""Variance-controlled pacing: the server gathers slopes until their mean is steady enough to step along it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from edgetune.aggregate.aggregator import Aggregator, Memory, ordered
from edgetune.core.errors import ConfigError
from edgetune.core.part import EVERY_SLOPE, FRESH, HELD, LAST_STEP
from edgetune.core.update import Contribution, Projected, Stepped, Update

Slopes = npt.NDArray[np.float32]
MOST = 1 << 16
"""Slopes that may be gathered at most: the memory of a server is so many keys and numbers."""


@dataclass(frozen=True, slots=True)
class Paced(Aggregator):
    """Gather slopes over rounds, of weights that stay, and step along their mean once it varies little.

        v = (sum_{i in half 1} g_i^2 / n_1^2 + sum_{i in half 2} g_i^2 / n_2^2) / 4
        w <- w - lr (1 / n) sum_i g_i z_i        if v <= threshold or n >= most;   else ask for more

    v is the variance, averaged over the weights, of the means of the two halves (every second slope). For directions of
    +-1, or gaussian ones on average, the products of two different directions have the mean 0 over the weights, so that
    v follows from slopes alone and the server forms no tensor. It falls as 1 / n, so that n grows by itself as slopes
    stop agreeing in size with the threshold.

    With `keep` below 1 the server takes the mean of the steepest slopes alone: directions that are proposed to devices
    are kept by what they measured along them. That points more along the gradient than the mean of all, and is longer:
    of gaussian slopes the steepest tenth have 4.4 times the mean square of all.

    Args:
        lr: learning rate, at least 0.
        threshold: v at which a step is taken; infinite steps every round, 0 takes half of the first round's v.
        most: slopes after which a step is taken whatever v is, 2 to 2^16, so that no run stands still.
        keep: share of the gathered slopes that a step takes, those of the greatest magnitude, in (0, 1].
        keep_last: tell devices which terms the last step was, for directions that follow from it.
    Cost: 12 bytes a slope that is gathered.
    Source: Xu et al. 2023, arXiv:2308.13894, section 3.3 (FwdLLM; over one monitored tensor there, thresholds 0.1 and
        0.2 by model); steepest slopes as arXiv:2408.10691 words its sampling.
    """

    lr: float
    threshold: float
    most: int = 4096
    keep_last: bool = False
    keep: float = 1.0
    name: ClassVar[str] = "paced"
    options: ClassVar[Mapping[str, str]] = {
        "learning_rate": "lr", "variance_threshold": "threshold", "most_slopes": "most", "keep_last": "keep_last",
        "keep_slopes": "keep",
    }  # fmt: skip

    def __post_init__(self) -> None:
        if not (0 <= self.lr < float("inf") and self.threshold >= 0 and 2 <= self.most <= MOST):
            raise ConfigError(
                f"pacing needs a learning rate and a threshold of at least 0 and 2 to {MOST:,} slopes, "
                f"not {self.lr}, {self.threshold}, {self.most}"
            )
        if not 0 < self.keep <= 1:
            raise ConfigError(
                f"a paced server keeps a share of the slopes above 0 and up to 1, not {self.keep}"
            )

    @property
    def gives(self) -> frozenset[str]:
        """The last step, if it is kept."""
        return frozenset({LAST_STEP}) if self.keep_last else frozenset()

    @property
    def needs(self) -> frozenset[str]:
        """Slopes of weights that no device moves, each along a direction of its own."""
        return frozenset({EVERY_SLOPE, HELD, FRESH})

    def start(self, state: Update) -> Memory:
        """Return an empty store: `seeds` int64 [most], `slopes` float32 [most], `gathered` and `last` int64 [].

        Where the threshold is found, `threshold` float64 [] is 0 until the first round.
        """
        kept = {"last": torch.zeros((), dtype=torch.int64)} if self.keep_last else {}
        found = {} if self.threshold else {"threshold": torch.zeros((), dtype=torch.float64)}
        return kept | found | self._empty()

    def _empty(self) -> Memory:
        return {
            "seeds": torch.full((self.most,), -1, dtype=torch.int64),
            "slopes": torch.zeros(self.most, dtype=torch.float32),
            "gathered": torch.zeros((), dtype=torch.int64),
        }

    def combine(self, contributions: Sequence[Contribution], state: Update, memory: Memory) -> Update | None:
        """Return the step, or None if more slopes are wanted; those beyond the most are left out."""
        told = [one.update for one in ordered(contributions) if isinstance(one.update, Projected)]
        before = int(memory["gathered"])
        new = Projected.chain(told)
        new = Projected(new.keys[: self.most - before], new.coefficients[: self.most - before])
        count = before + len(new.keys)
        memory["seeds"][before:count] = torch.from_numpy(new.keys)
        memory["slopes"][before:count] = torch.from_numpy(new.coefficients)
        memory["gathered"].fill_(count)
        slopes = memory["slopes"][:count].numpy()
        if count < 2:
            return None
        varies = variance_of_mean(slopes)
        if not self.threshold and not float(memory["threshold"]):
            memory["threshold"].fill_(varies / 2)
        if varies > (self.threshold or float(memory["threshold"])) and count < self.most:
            return None
        kept = steepest(slopes, self.keep)
        update = Projected(memory["seeds"][:count].numpy()[kept], slopes[kept]).scaled(-self.lr / len(kept))
        memory |= self._empty()
        if self.keep_last:
            memory["last"].fill_(len(kept))
        return update

    def weigh(self, state: Update, memory: Memory) -> Update:
        """Return the state with its last step marked, if that is kept and there was one."""
        last = int(memory["last"]) if self.keep_last else 0
        if not last or not isinstance(state, Projected):
            return state
        return Stepped(state.keys, state.coefficients, last)


def steepest(slopes: Slopes, share: float) -> npt.NDArray[np.intp]:
    """Return the places of the slopes of the greatest magnitude, ascending: at least one, and all of a share of 1."""
    count = max(1, math.ceil(share * len(slopes)))
    return np.sort(np.argsort(-np.abs(slopes), kind="stable")[:count])


def variance_of_mean(slopes: Slopes) -> float:
    """Return v of at least two slopes; see `Paced`."""
    squares = slopes.astype(np.float64) ** 2
    halves = (squares[::2], squares[1::2])
    return float(sum(half.sum() / len(half) ** 2 for half in halves)) / 4
