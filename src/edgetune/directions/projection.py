"""Slopes along all directions of a pool, from gradients that come one tensor at a time."""

from __future__ import annotations

import numpy as np
import torch

from edgetune.core.update import Projected
from edgetune.directions.kind import Summed
from edgetune.directions.source import Source


class Projection:
    """A gradient seen along a pool; no tensor of it is kept.

        mean = (1 / K) sum_k <G, z_k> z_k

    Args:
        kind: the pool.
        source: the key streams.
    Cost: K numbers.
    """

    def __init__(self, kind: Summed, source: Source) -> None:
        self._kind, self._source = kind, source
        self._total: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Take in the gradient of a tensor, of all of it; again of a tensor adds."""
        self._total = self._kind.project(self._total, gradient, self._source, name)

    @torch.no_grad()
    def mean(self) -> Projected:
        """Return the mean over the pool; nothing if no gradient came."""
        if self._total is None:
            return Projected.none()
        slopes = self._kind.slopes(self._total).cpu()
        return Projected(np.arange(len(slopes), dtype=np.int64), (slopes / len(slopes)).numpy())
