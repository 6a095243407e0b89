"""What directions of rank one add to the outputs of layers, so that no weight is formed or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from edgetune.core.moves import Moves
from edgetune.core.perturbation import Perturbation
from edgetune.core.update import Projected
from edgetune.directions.hadamard import walsh
from edgetune.directions.kind import Kind
from edgetune.directions.native.tiles import add_apart, fold, unfold
from edgetune.directions.rank_one import RankOneKind
from edgetune.directions.rank_one_pool import RankOnePool
from edgetune.directions.source import Source


class _Scaled(Moves):
    """Moves under layer-wise factors c by name; 1 for a name that is not there."""

    def __init__(self, source: Source, scales: Mapping[str, float]) -> None:
        self._source, self._scales = source, scales

    def _factors(self, name: str, now: Perturbation) -> list[float]:
        """Return the perturbation of a tensor at every point, under layer-wise scaling."""
        inverse = 1 / self._scales.get(name, 1.0)
        return [scale * inverse for scale in now.scales]


class FreshMoves(_Scaled):
    """A perturbation along independent directions; steps are in the weights.

    y += s_p u_p (v_p . x)   at the point p
    """

    sums: ClassVar[bool] = False

    def __init__(self, kind: RankOneKind, source: Source, scales: Mapping[str, float]) -> None:
        super().__init__(source, scales)
        self._kind = kind

    def linear(
        self, name: str, shape: tuple[int, int], x: torch.Tensor, y: torch.Tensor, now: Perturbation
    ) -> None:
        """Add `x (W' - W)^T`; see `Moves.linear`."""
        u, v, factors = self._drawn(name, shape, now, x.device)
        add_apart(y, x.contiguous(), v, u, factors)

    def turned(
        self, name: str, shape: tuple[int, int], x: torch.Tensor, y: torch.Tensor, now: Perturbation
    ) -> None:
        """Add `x (W' - W)`; see `Moves.turned`."""
        u, v, factors = self._drawn(name, shape, now, x.device)
        add_apart(y, x.contiguous(), u, v, factors)

    def rows(
        self, name: str, shape: tuple[int, int], ids: torch.Tensor, y: torch.Tensor, now: Perturbation
    ) -> None:
        """Add rows of `W' - W`; see `Moves.rows`."""
        u, v, factors = self._drawn(name, shape, now, ids.device)
        y.baddbmm_((u.gather(1, ids) * factors).unsqueeze(2), v.unsqueeze(1))

    def vectors(self, name: str, count: int, now: Perturbation, device: torch.device) -> torch.Tensor:
        """Return what is added to a vector at every point, float32 [points, count]."""
        seeds = now.seeds or (now.seed,) * len(now.scales)
        drawn = {
            seed: self._kind.vector(self._source, name, seed, count, device) for seed in dict.fromkeys(seeds)
        }
        factors = torch.tensor(self._factors(name, now), device=device).unsqueeze(1)
        return torch.stack([drawn[seed] for seed in seeds]).mul_(factors)

    def _drawn(
        self, name: str, shape: tuple[int, int], now: Perturbation, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return u [points, m], v [points, n] and the factors [points, 1]."""
        factors = torch.tensor(self._factors(name, now), device=device).view(-1, 1)
        points = len(now.scales)
        if not now.seeds:
            u, v = self._kind.factors(self._source, name, now.seed, *shape, device)
            return u.expand(points, -1).contiguous(), v.expand(points, -1).contiguous(), factors
        drawn = {
            seed: self._kind.factors(self._source, name, seed, *shape, device)
            for seed in dict.fromkeys(now.seeds)
        }
        u, v = (torch.stack([drawn[seed][side] for seed in now.seeds]) for side in (0, 1))
        return u, v, factors


class PoolMoves(_Scaled):
    """A sum over a pool, and a perturbation, both from one small matrix.

        y += D tile(c M + s_p / c h_a h_b^T) E x   at the point p

    Args:
        kind: the pool.
        source: remembers its streams.
        scales: layer-wise factors.
    Cost: of memory the signs of rows and columns.
    """

    sums: ClassVar[bool] = True

    def __init__(self, kind: RankOnePool, source: Source, scales: Mapping[str, float]) -> None:
        super().__init__(source, scales)
        self._kind = kind
        self._core = kind.core(Projected.none())
        tall, wide = kind.tile
        self._sides = tuple(walsh(torch.eye(size)) for size in (tall, wide))
        self._last: tuple[Perturbation, float, torch.Tensor] | None = None

    def become(self, state: Projected) -> None:
        """Take a sum: coefficients of the pool's directions."""
        self._core, self._last = self._kind.core(state), None

    def linear(
        self, name: str, shape: tuple[int, int], x: torch.Tensor, y: torch.Tensor, now: Perturbation
    ) -> None:
        """Add `x (W' - W)^T`; see `Moves.linear`."""
        cores, (d, e) = self._cores(name, now, x.device), self._signs(name, shape, x.device)
        unfold(y, torch.bmm(fold(x, e, cores.shape[2]), cores.transpose(1, 2)), d)

    def turned(
        self, name: str, shape: tuple[int, int], x: torch.Tensor, y: torch.Tensor, now: Perturbation
    ) -> None:
        """Add `x (W' - W)`; see `Moves.turned`."""
        cores, (d, e) = self._cores(name, now, x.device), self._signs(name, shape, x.device)
        unfold(y, torch.bmm(fold(x, d, cores.shape[1]), cores), e)

    def rows(
        self, name: str, shape: tuple[int, int], ids: torch.Tensor, y: torch.Tensor, now: Perturbation
    ) -> None:
        """Add rows of `W' - W`; see `Moves.rows`."""
        cores, (d, e) = self._cores(name, now, ids.device), self._signs(name, shape, ids.device)
        points = torch.arange(len(cores), device=ids.device).unsqueeze(1)
        unfold(y, cores[points, ids % cores.shape[1]] * d[ids].unsqueeze(2), e)

    def vectors(self, name: str, count: int, now: Perturbation, device: torch.device) -> torch.Tensor:
        """Return what is added to a vector at every point, float32 [points, count]."""
        cores = self._cores(name, now, device).flatten(1)
        tiled = cores.repeat(1, -(-count // cores.shape[1]))[:, :count]
        return tiled * self._kind.row_signs(self._source, name, count, device)

    def _signs(
        self, name: str, shape: tuple[int, int], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            self._kind.row_signs(self._source, name, shape[0], device),
            self._kind.column_signs(self._source, name, shape[1], device),
        )

    def _cores(self, name: str, now: Perturbation, device: torch.device) -> torch.Tensor:
        """Return the small matrix at every point, [points, P, Q]; tensors of one forward pass ask for the same."""
        factor = self._scales.get(name, 1.0)
        if self._last is None or self._last[0] is not now or self._last[1] != factor:
            seeds = now.seeds or (now.seed,) * len(now.scales)
            (tall, wide), factors = self._sides, torch.tensor(self._factors(name, now)).view(-1, 1, 1)
            a, b = (
                torch.tensor(one) for one in zip(*(divmod(seed, len(wide)) for seed in seeds), strict=True)
            )
            moved = (tall[a].unsqueeze(2) * factors).mul(wide[b].unsqueeze(1))
            self._last = now, factor, moved.add_(self._core, alpha=factor).to(device)
        return self._last[2]


def moves_of(kind: Kind, source: Source, scales: Mapping[str, float]) -> Moves | None:
    """Return what a kind of direction adds to the outputs of layers; None if it is not of rank one.

    Args:
        kind: what a direction looks like.
        source: the key streams; of a pool, ones that are remembered.
        scales: layer-wise factors by name.
    """
    if isinstance(kind, RankOnePool):
        return PoolMoves(kind, source, scales)
    return FreshMoves(kind, source, scales) if isinstance(kind, RankOneKind) else None
