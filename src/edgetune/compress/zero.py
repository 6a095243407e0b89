"""Scale and zero point of a group: some zero points, and for each the best scale there is."""

from __future__ import annotations

import torch

from edgetune.compress.grid import loss_of
from edgetune.compress.search import FINEST, best_scale
from edgetune.core.quantised import BlockGrid

BESIDE = 1
"""Zero points tried on either side of the one that the range of the weights asks for."""


def best_zero(weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid) -> list[torch.Tensor]:
    """Return scale and zero point of every group with the least weighted squared error.

        argmin_{s, z} sum_j h_j (s (c_j - z) - x_j)^2,   c_j the nearest code,   z within 1 of  low - min(x, 0) / s0,
        s0 = (max(x, 0) - min(x, 0)) / (high - low);   for every z the best of all s, as it is stored

    The range is made to hold 0, so that z is a code. With more than 48 codes s0 is as good as the best (`AbsMax`).

    Args:
        weights: float [..., group], finite.
        importance: float, broadcastable to `weights`, not negative.
        grid: one with an integer zero point.

    Returns:
        stored scales and zero points, each [...].
    Cost: three searches of `best_scale` a group, each over one sign.
    """
    flat = weights.reshape(-1, weights.shape[-1])
    cost = importance.expand_as(weights).reshape(flat.shape)
    low, high = flat.amin(-1).clamp(max=0), flat.amax(-1).clamp(min=0)
    plain = (high - low).clamp(min=1e-30) / (grid.high - grid.low)
    first = (grid.low - low / plain).round().clamp(grid.low, grid.high)
    scales, zeros = (field.number for field in grid.fields)
    found = [scales.nearest(plain), zeros.nearest(first)]
    if grid.high - grid.low < FINEST:
        least = _loss(flat, cost, found, grid)
        for zero in range(grid.low, grid.high + 1):
            some = ((first - zero).abs() <= BESIDE).nonzero()[:, 0]
            if not len(some):
                continue
            x, h = flat[some], cost[some]
            scale = scales.nearest(best_scale(x, h, grid.points(x.device).to(x) - zero, signed=False))
            tried = [scale, zeros.nearest(torch.full_like(plain[some], zero))]
            loss = _loss(x, h, tried, grid)
            better = loss < least[some]
            for stored, new in zip(found, tried, strict=True):
                stored[some[better]] = new[better]
            least[some[better]] = loss[better]
    return [stored.reshape(weights.shape[:-1]) for stored in found]


def _loss(x: torch.Tensor, cost: torch.Tensor, numbers: list[torch.Tensor], grid: BlockGrid) -> torch.Tensor:
    """Return the weighted squared error of groups on stored numbers, float [groups]."""
    scale, zero = (field.number.value(stored) for field, stored in zip(grid.fields, numbers, strict=True))
    return loss_of(x, scale, grid.sign * scale * zero, cost, grid)
