"""The two-point estimate of the gradient along one direction: two forward passes, no back-propagation."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.errors import ConfigError
from edgetune.core.tuned import PerturbableTuned
from edgetune.core.update import Estimate, Projected


@dataclass(frozen=True, slots=True)
class TwoPoint:
    """Central-difference slope of the loss along one direction.

        g = (L(w + eps z) - L(w - eps z)) / (2 eps),   estimate = g z

    Args:
        eps: perturbation radius, > 0, in units of the weights (1e-3 for float32).

    Raises:
        ConfigError: if eps is not a positive number.
    Cost: two forward passes, and scratch for perturbed weights (see `core.tuned.PerturbableTuned`).
    Source: Spall 1992; Malladi et al. 2023, arXiv:2305.17333, Algorithm 1.
    """

    eps: float

    def __post_init__(self) -> None:
        if not 0 < self.eps < float("inf"):
            raise ConfigError(f"eps must be a positive number, not {self.eps}")

    @torch.no_grad()
    def __call__(self, tuned: PerturbableTuned, objective: Objective, batch: Batch, key: int) -> Estimate:
        """Return the mean of the two losses and the slope on direction `key`."""
        above, below = tuned.losses(objective, batch, key, (self.eps, -self.eps))
        return Estimate((above + below) / 2, Projected.of(key, (above - below) / (2 * self.eps)))
