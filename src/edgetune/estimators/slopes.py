"""What the forward-only estimates share: slopes that are no numbers are left out, the others averaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np

from edgetune.core.batch import Batch, Objective, mean_losses, response_loss
from edgetune.core.errors import ConfigError
from edgetune.core.part import DIRECTIONS, SLOPES
from edgetune.core.update import Estimate, Projected
from edgetune.estimators.estimator import Estimator


class Sloped(Estimator):
    """What forward-only estimators declare."""

    __slots__ = ()
    options: ClassVar[Mapping[str, str]] = {"eps": "eps", "directions_per_step": "directions"}

    @property
    def gives(self) -> frozenset[str]:
        """Slopes, one number a direction."""
        return frozenset({SLOPES})

    @property
    def needs(self) -> frozenset[str]:
        """Directions to take slopes along."""
        return frozenset({DIRECTIONS})


def mean_of_slopes(keys: Sequence[int], losses: Sequence[float], slopes: Sequence[float]) -> Estimate:
    """Average slopes over their directions, without those that are NaN or infinite.

        estimate = (1 / m) sum_i g_i z_i   over the m finite g_i

    Args:
        keys: directions, at least one.
        losses: what each slope says of the loss, nats.
        slopes: g_i, one a direction.

    Returns:
        Mean loss and estimate over the finite slopes; if there is none, an estimate that is not finite.
    """
    with np.errstate(over="ignore"):  # a slope beyond float32 is infinite for every use it could have
        finite = [
            math.isfinite(loss) and math.isfinite(np.float32(g))
            for loss, g in zip(losses, slopes, strict=True)
        ]
    kept = [index for index, fine in enumerate(finite) if fine]
    if not kept:
        return Estimate(math.nan, Projected.of(keys[0], math.nan), len(keys))
    loss = sum(losses[index] for index in kept) / len(kept)
    values = np.array([slopes[index] / len(kept) for index in kept]).astype(np.float32)
    return Estimate(
        loss, Projected(np.array([keys[index] for index in kept], np.int64), values), len(keys) - len(kept)
    )


def check_slopes(eps: float, directions: int) -> None:
    """Refuse a radius or a number of directions that cannot be used.

    Raises:
        ConfigError: naming the number.
    """
    if not 0 < eps < math.inf:
        raise ConfigError(f"eps must be a positive number, not {eps}")
    if directions < 1:
        raise ConfigError(f"an estimate needs at least one direction, not {directions}")


def check_spread(directions: int) -> None:
    """Refuse to divide by the spread of a single number.

    Raises:
        ConfigError: saying how many are needed.
    """
    if directions < 2:
        raise ConfigError(
            "one loss has no spread: a standardised estimate needs at least 2 directions",
            hint="set method.directions_per_step, 8 in the paper",
        )


def spread_of(values: Sequence[float]) -> float:
    """Return the population standard deviation of the finite values; exactly 0 of equal ones, or of one."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float64 there is no spread to divide by
        return float(np.std(np.array(finite) - finite[0]))


def at_points(
    tuned: Any, objective: Objective, batch: Batch, points: Sequence[tuple[int, float]]
) -> list[float]:
    """Evaluate an objective at points of several lines, together where the handle can.

    Args:
        tuned: a perturbable handle.
        objective: a scalar of model and batch.
        batch: the same for every point.
        points: seeds and signed scales; those of one line follow each other.

    Returns:
        One loss a point.
    Cost: a forward pass a point.
    """
    together = getattr(tuned, "line_losses", None)
    if together is not None and objective is response_loss:
        return mean_losses(*together(batch, points))
    lines = [(seed, [scale for _, scale in some]) for seed, some in groupby(points, key=itemgetter(0))]
    return [loss for seed, scales in lines for loss in tuned.losses(objective, batch, seed, scales)]
