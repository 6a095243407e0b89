"""The two-point estimate of the gradient: two forward passes a direction, no back-propagation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.update import Estimate
from edgetune.estimators.slopes import Sloped, at_points, check_slopes, mean_of_slopes


@dataclass(frozen=True, slots=True)
class TwoPoint(Sloped):
    """Central-difference slope of the loss along n directions, averaged (n-SPSA).

        g_i = (L(w + eps z_i) - L(w - eps z_i)) / (2 eps),   estimate = (1 / n) sum_i g_i z_i

    With n directions the estimate's squared length is (d + n - 1) / n times the gradient's (Rademacher).

    Args:
        eps: perturbation radius, > 0, in units of the weights (1e-3 for float32).
        directions: n, directions a step, at least 1.

    Raises:
        ConfigError: if eps is not a positive number or n is below 1.
    Cost: 2 n forward passes, and scratch for perturbed weights (see `core.tuned.PerturbableTuned`).
    Source: Spall 1992; Malladi et al. 2023, arXiv:2305.17333, Algorithm 1 and appendix A (n-SPSA).
    """

    eps: float
    directions: int = 1
    name: ClassVar[str] = "two_point"

    def __post_init__(self) -> None:
        check_slopes(self.eps, self.directions)

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        return 2 * self.directions

    @torch.no_grad()
    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the mean loss of all points and the mean slope over the directions `keys`."""
        found = at_points(tuned, objective, batch, [(key, e) for key in keys for e in (self.eps, -self.eps)])
        points = list(zip(found[::2], found[1::2], strict=True))
        return mean_of_slopes(
            keys,
            [(above + below) / 2 for above, below in points],
            [(above - below) / (2 * self.eps) for above, below in points],
        )
