"""The numbers a block stores: of a whole block first, then of each group as its weights come up."""

from __future__ import annotations

from itertools import product

import torch

from edgetune.compress.grid import ScaleFit, grouped, loss_of, nearest_codes
from edgetune.compress.search import FINEST, best_scale
from edgetune.compress.zero import best_zero
from edgetune.core.numbers import Whole
from edgetune.core.quantised import BlockGrid, Field

Numbers = list[torch.Tensor]


def fit_outer(
    weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid, fit: ScaleFit
) -> list[torch.Tensor]:
    """Return the numbers that a whole block shares, one for each two-level factor; nothing for a one-level grid.

        d = argmin_d sum_g k_g (s_g - d n(s_g / d))^2,   k_g = sum h level(code)^2 (of the offset: sum h)

    with s_g what every group would take for itself and n(.) the nearest number that a group can store.

    Args:
        weights: float [..., block].
        importance: float [block] or broadcastable.
        grid: of two levels, else nothing is returned.
        fit: how a group chooses.

    Returns:
        stored numbers [...], of the outer fields in the order of `grid.fields`.
    """
    if len(grid.scale) == 1:
        return []
    groups = grouped(weights, grid.group)
    cost = grouped(importance.expand_as(weights), grid.group)
    scale, offset = fit(groups, cost, grid)
    level = grid.level(nearest_codes(groups, scale, offset, grid))
    found = [_outer(scale, (level.square() * cost).sum(-1), grid.scale, signed=grid.signed)]
    if offset is not None:
        found.append(_outer(offset * grid.sign, cost.sum(-1), grid.offset, signed=False))
    return found


def _outer(
    values: torch.Tensor, cost: torch.Tensor, fields: tuple[Field, ...], *, signed: bool
) -> torch.Tensor:
    head, each = fields
    if not isinstance(each.number, Whole):
        raise TypeError(f"a group of a two-level grid stores an integer, not {each.number}")
    low, high = each.number.low, each.number.high
    if high - low >= 2 * FINEST:
        best = values.abs().amax(-1) / high
    else:
        points = torch.arange(low, high + 1, dtype=values.dtype, device=values.device)
        best = best_scale(values, cost, points, signed=signed)
    return head.number.nearest(best)


def fit_inner(
    weights: torch.Tensor,
    importance: torch.Tensor,
    outer: list[torch.Tensor],
    grid: BlockGrid,
    fit: ScaleFit,
) -> list[torch.Tensor]:
    """Return the numbers of one group; where their steps are coarse, the best of the neighbours of what is wanted.

    Args:
        weights: float [..., group].
        importance: float [group] or broadcastable.
        outer: stored numbers [...] from `fit_outer`.
        grid: where the codes live.
        fit: how a group chooses; zero points are always searched (`zero.best_zero`).

    Returns:
        stored numbers [...], of the inner fields in the order of `grid.fields`.
    """
    if grid.tied:
        return best_zero(weights, importance, grid)
    heads = [fields[:-1] for fields in _factors(grid)]
    values = [field.number.value(stored) for field, stored in zip(sum(heads, ()), outer, strict=True)]
    over = values if values else [torch.ones_like(weights[..., 0])] * len(heads)
    scale, offset = fit(weights, importance, grid)
    wanted = [scale / _nonzero(over[0])]
    if offset is not None:
        wanted.append(grid.sign * offset / _nonzero(over[1]))
    numbers = [fields[-1].number for fields in _factors(grid)]
    if not any(number.coarse for number in numbers):
        return [number.nearest(value) for number, value in zip(numbers, wanted, strict=True)]
    best = [number.nearest(value) for number, value in zip(numbers, wanted, strict=True)]
    least = torch.full_like(scale, torch.inf)
    sides = [
        (number.below(value), number.above(value)) for number, value in zip(numbers, wanted, strict=True)
    ]
    for chosen in product(*sides):
        s = over[0] * numbers[0].value(chosen[0])
        o = None if offset is None else grid.sign * over[1] * numbers[1].value(chosen[1])
        loss = loss_of(weights, s, o, importance, grid)
        better = loss < least
        best = [torch.where(better, new, old) for new, old in zip(chosen, best, strict=True)]
        least = torch.where(better, loss, least)
    return best


def fit_all(
    weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid, fit: ScaleFit
) -> list[torch.Tensor]:
    """Return the numbers of whole rows, as `QuantisedMatrix` holds them.

    Args:
        weights: float [rows, d], d a multiple of the grid's block.
        importance: float [d].
        grid: where the codes live.
        fit: how a group chooses.

    Returns:
        stored numbers [rows, d / span] for every field.
    """
    blocks = grouped(weights, grid.block)
    outer = fit_outer(blocks, grouped(importance, grid.block), grid, fit)
    spread = [number.repeat_interleave(grid.block // grid.group, -1) for number in outer]
    groups = grouped(weights, grid.group)
    inner = fit_inner(groups, grouped(importance, grid.group), spread, grid, fit)
    return joined(outer, inner, grid)


def joined(outer: list[torch.Tensor], inner: list[torch.Tensor], grid: BlockGrid) -> list[torch.Tensor]:
    """Return outer and inner numbers in the order of `grid.fields`."""
    if not outer:
        return inner
    return [number for pair in zip(outer, inner, strict=True) for number in pair]


def _factors(grid: BlockGrid) -> list[tuple[Field, ...]]:
    return [grid.scale, grid.offset] if grid.offset else [grid.scale]


def _nonzero(values: torch.Tensor) -> torch.Tensor:
    """Return values with infinity for 0, so that what is divided by them is 0."""
    return torch.where(values == 0, torch.full_like(values, torch.inf), values)
