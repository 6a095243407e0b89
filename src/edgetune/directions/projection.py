"""Slopes along all directions of a pool, from gradients that come one tensor at a time."""

from __future__ import annotations

import numpy as np
import torch

from edgetune.core.errors import ConfigError
from edgetune.core.update import Projected
from edgetune.directions.kind import Summed
from edgetune.directions.native.tiles import fold
from edgetune.directions.rank_one_pool import RankOnePool
from edgetune.directions.source import Source


class Projection:
    """A gradient seen along a pool; no tensor of it is kept.

        mean = (1 / K) sum_k <G, z_k> z_k

    Along a pool of rank one a gradient that is a sum of outer products is seen without being formed:

        G = sum_t e_t x_t^T:   fold(D G E) = sum_t fold(D e_t) fold(E x_t)^T

    Args:
        kind: the pool.
        source: the key streams.
    Cost: K numbers.
    """

    def __init__(self, kind: Summed, source: Source) -> None:
        self._kind, self._source = kind, source
        self._total: torch.Tensor | None = None
        self._tile: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, name: str, gradient: torch.Tensor) -> None:
        """Take in the gradient of a tensor, of all of it; again of a tensor adds."""
        self._total = self._kind.project(self._total, gradient, self._source, name)

    @torch.no_grad()
    def folded(
        self, name: str, shape: tuple[int, int], values: torch.Tensor, *, columns: bool
    ) -> torch.Tensor:
        """Return one side of a gradient, folded onto a tile; see `core.tuned.Slopes`.

        Raises:
            ConfigError: if the pool is not of rank one.
        Cost: a pass over the values.
        """
        pool = self._rank_one
        drawn, size = (pool.column_signs, pool.tile[1]) if columns else (pool.row_signs, pool.tile[0])
        signs = drawn(self._source, name, shape[int(columns)], values.device)
        return fold(values.detach().float().contiguous(), signs, size)

    @torch.no_grad()
    def picked(self, name: str, shape: tuple[int, int], ids: torch.Tensor) -> torch.Tensor:
        """Return the rows' side of rows that were looked up; see `core.tuned.Slopes`.

        Raises:
            ConfigError: if the pool is not of rank one.
        """
        pool = self._rank_one
        signs = pool.row_signs(self._source, name, shape[0], ids.device)[ids]
        found = torch.zeros(*ids.shape, pool.tile[0], device=ids.device)
        return found.scatter_(-1, (ids % pool.tile[0]).unsqueeze(-1), signs.unsqueeze(-1))

    def tile(self, device: torch.device) -> torch.Tensor:
        """Return the tile that all matrices share, as if they were computed with it; see `core.tuned.Slopes`.

            y = W x + D tile(M) E x,   M = 0:   dL/dM = fold(D G E)

        Args:
            device: of the first call.

        Raises:
            ConfigError: if the pool is not of rank one.
        """
        if self._tile is None:
            self._tile = torch.zeros(self._rank_one.tile, device=device, requires_grad=True)
        return self._tile

    @property
    def _rank_one(self) -> RankOnePool:
        if not isinstance(self._kind, RankOnePool):
            raise ConfigError(
                f"slopes along {self._kind.name} directions take a gradient of every matrix",
                hint="method.directions = rank_one_pool",
            )
        return self._kind

    @torch.no_grad()
    def mean(self) -> Projected:
        """Return the mean over the pool; nothing if no gradient came."""
        parts = [self._total, None if self._tile is None else self._tile.grad]
        found = [one for one in parts if one is not None]
        if not found:
            return Projected.none()
        slopes = self._kind.slopes(found[0] if len(found) == 1 else found[0] + found[1]).cpu()
        return Projected(np.arange(len(slopes), dtype=np.int64), (slopes / len(slopes)).numpy())
