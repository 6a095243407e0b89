"""One-sided differences over the spread of the losses: the step is the same for a loss of any scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.errors import ConfigError
from edgetune.core.update import Estimate, Projected
from edgetune.estimators.slopes import Sloped, check_slopes, mean_of_slopes


@dataclass(frozen=True, slots=True)
class Standardised(Sloped):
    """Forward differences of the loss along n directions, divided by the spread of the n losses, and averaged.

        g_i = (L(w + eps z_i) - L(w)) / std(L(w + eps z_1) ... L(w + eps z_n)),   estimate = (1 / n) sum_i g_i z_i

    std is the population's, over the losses that are finite. To first order it is eps |dL/dw|: a step has a length that
    neither the loss's scale nor the gradient's changes, short where directions disagree much.

    Args:
        eps: perturbation radius, > 0, in units of the weights; where curvature rules, all g_i have one sign and grow.
        directions: n, directions a step, at least 2.

    Raises:
        ConfigError: if eps is not a positive number or n is below 2.
    Cost: n + 1 forward passes. Losses that are all equal, or of which one alone is finite, have no spread: the step is
        dropped.
    Source: Dang et al. 2025, arXiv:2506.09034 (FZOO); DKmiyan/FZOO.
    """

    eps: float
    directions: int = 8
    name: ClassVar[str] = "standardised"

    def __post_init__(self) -> None:
        check_slopes(self.eps, self.directions)
        if self.directions < 2:
            raise ConfigError(
                "one loss has no spread: a standardised estimate needs at least 2 directions",
                hint="set method.directions_per_step, 8 in the paper",
            )

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        return self.directions + 1

    def scale(self, slope: float) -> float:
        """Return the slope: what the losses' spread is of, in units of the radius."""
        return slope

    @torch.no_grad()
    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the loss at the present weights and the mean standardised difference over the directions `keys`."""
        here, first = tuned.losses(objective, batch, keys[0], (0.0, self.eps))
        ahead = [first, *(tuned.losses(objective, batch, key, (self.eps,))[0] for key in keys[1:])]
        spread = _spread(ahead)
        if not 0 < spread < math.inf:
            return Estimate(math.nan, Projected.of(keys[0], math.nan), len(keys))
        return mean_of_slopes(keys, [here] * len(keys), [(loss - here) / spread for loss in ahead])


def _spread(losses: Sequence[float]) -> float:
    """Return the population standard deviation of the finite losses; exactly 0 of equal ones, or of one."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 2:
        return 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float64 there is no spread to divide by
        return float(np.std(np.array(finite) - finite[0]))
