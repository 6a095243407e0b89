"""The one-sided estimate of the gradient: one forward pass a direction, and one that all directions share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.update import Estimate
from edgetune.estimators.slopes import Sloped, at_points, check_slopes, mean_of_slopes


@dataclass(frozen=True, slots=True)
class OneSided(Sloped):
    """Forward-difference slope of the loss along n directions, averaged.

        g_i = (L(w + eps z_i) - L(w)) / eps,   estimate = (1 / n) sum_i g_i z_i

    Its error is eps / 2 times the curvature along z_i, where the two-point slope has none of first order; in exchange
    n directions cost n + 1 forward passes instead of 2 n.

    Args:
        eps: perturbation radius, > 0, in units of the weights.
        directions: n, directions a step, at least 1.

    Raises:
        ConfigError: if eps is not a positive number or n is below 1.
    Cost: n + 1 forward passes.
    Source: Duchi et al. 2015, arXiv:1312.2139; variant in princeton-nlp/MeZO.
    """

    eps: float
    directions: int = 1
    name: ClassVar[str] = "one_sided"

    def __post_init__(self) -> None:
        check_slopes(self.eps, self.directions)

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        return self.directions + 1

    @torch.no_grad()
    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the loss at the present weights and the mean slope over the directions `keys`."""
        points = [(keys[0], 0.0), *((key, self.eps) for key in keys)]
        here, *ahead = at_points(tuned, objective, batch, points)
        return mean_of_slopes(keys, [here] * len(keys), [(loss - here) / self.eps for loss in ahead])
