"""The gradient along skip connections as slopes along all directions of a pool: K numbers from one forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

from edgetune.core.batch import Batch, Objective
from edgetune.core.part import ALL_AT_ONCE, WRITES
from edgetune.estimators.pool_slopes import PoolSlopes
from edgetune.estimators.skip_gradient import along_skips


@dataclass(frozen=True, slots=True)
class SkipSlopes(PoolSlopes):
    """The slope of the loss along every direction of a pool, by the gradient along skip connections.

        G_l = sum_t e_t x_lt^T   (see `SkipGradient`),   estimate = (1 / K) sum_k <G, z_k> z_k

    What the mean of K two-point slopes is of the exact gradient, without their 2 K forward passes.

    Cost: along a pool of rank one a forward pass, the product of the error with the head, and 64 numbers a token and
        layer (of K = 4096); along another that of `SkipGradient`, and a pass over each gradient, of which one exists at
        a time.
    Source: this package.
    """

    name: ClassVar[str] = "skip_slopes"

    @property
    def passes(self) -> int:
        """Two, as of `SkipGradient`."""
        return 2

    @property
    def needs(self) -> frozenset[str]:
        """A pool, over weights that skip connections reach."""
        return frozenset({ALL_AT_ONCE, WRITES})

    def along(self, tuned: Any, objective: Objective, batch: Batch) -> AbstractContextManager[object]:
        """Return what cuts the paths that are no skip connections."""
        return along_skips(tuned.model, objective, batch)
