"""After the sweep: one code, then one number at a time moves to where the layer's error is least, the others fixed."""

from __future__ import annotations

import torch

from edgetune.compress.grid import nearest_codes
from edgetune.compress.sweep import RUN
from edgetune.core.quantised import BlockGrid, Field

TOGETHER = 128
"""Columns between two products with the rest of the Hessian; a block of the grid if that is wider."""


def descend(
    target: torch.Tensor,
    hessian: torch.Tensor,
    codes: torch.Tensor,
    numbers: list[torch.Tensor],
    grid: BlockGrid,
    passes: int,
    kept: torch.Tensor | None = None,
) -> None:
    """Lower the error of codes and numbers in place, coordinate by coordinate.

        f(Q) = (Q - T) H (Q - T)^T,   G = (Q - T) H,   Q_j = s level(c_j) + o
        c_j <- the code nearest to Q_j - G_j / H_jj,   then a number p of a block with v = dQ/dp
        p <- nearest(p - (v . G_b) / (v H_bb v^T))

    Every move is the exact minimum along its coordinate, so that f never rises: a step of p that it would raise f by,
    for what p can be stored as, is not taken.

    Args:
        target: float32 [d, rows], T, a column of the matrix in one piece.
        hessian: float32 [d, d], damped as the sweep's was.
        codes: int8 [d, rows], changed.
        numbers: stored numbers [d / span, rows] of every field, changed.
        grid: of both.
        passes: over all columns and blocks, at least 0.
        kept: bool [d, rows]; weights that are not keep the code they have.
    Cost: rows d^2 multiply-adds, and as many a pass.
    Source: Gauss-Seidel on OPTQ's objective; QuantEase (arXiv 2309.01885) for the codes.
    """
    if not passes:
        return
    gradient = hessian @ (_weights(codes, numbers, grid) - target)
    together = max(TOGETHER, grid.block)
    for _ in range(passes):
        for start in range(0, len(target), together):
            here = slice(start, min(start + together, len(target)))
            inner, open_block = hessian[here, here], gradient[here].clone()
            own = [
                number[here.start // field.span : here.stop // field.span]
                for field, number in zip(grid.fields, numbers, strict=True)
            ]
            before = _weights(codes[here], own, grid)
            _over_codes(inner, open_block, codes[here], own, grid, None if kept is None else kept[here])
            for place in range(len(grid.fields)):
                _over_numbers(inner, open_block, codes[here], own, grid, place)
            moved = _weights(codes[here], own, grid) - before
            gradient.addmm_(hessian[:, here], moved)


def _weights(codes: torch.Tensor, numbers: list[torch.Tensor], grid: BlockGrid) -> torch.Tensor:
    """Return Q, float32 [d, rows]."""
    scale, offset = grid.steps(numbers, 0)
    found = grid.level(codes).mul_(scale.repeat_interleave(grid.group, 0))
    return found if offset is None else found.add_(offset.repeat_interleave(grid.group, 0))


def _over_codes(
    inner: torch.Tensor,
    gradient: torch.Tensor,
    codes: torch.Tensor,
    numbers: list[torch.Tensor],
    grid: BlockGrid,
    kept: torch.Tensor | None,
) -> None:
    """Move the codes of a block; `gradient` follows."""
    scale, _ = grid.steps(numbers, 0)
    for first in range(0, len(codes), RUN):
        last = min(first + RUN, len(codes))
        run, moved = gradient[first:last], torch.empty_like(gradient[first:last])
        before = grid.level(codes[first:last])
        for j in range(first, last):
            s = scale[j // grid.group]
            at = before[j - first] * s
            wanted = (at - gradient[j] / inner[j, j]).unsqueeze(-1)  # less the offset, which does not move
            code = torch.where(s != 0, nearest_codes(wanted, s, None, grid)[:, 0], codes[j])
            if kept is not None:
                code = torch.where(kept[j], code, codes[j])
            moved[j - first] = grid.level(code) * s - at
            codes[j] = code.to(torch.int8)
            run.addr_(inner[first:last, j], moved[j - first])
        gradient[:first].addmm_(inner[:first, first:last], moved)
        gradient[last:].addmm_(inner[last:, first:last], moved)


def _over_numbers(
    inner: torch.Tensor,
    gradient: torch.Tensor,
    codes: torch.Tensor,
    numbers: list[torch.Tensor],
    grid: BlockGrid,
    place: int,
) -> None:
    """Move the numbers of one field of a block; `gradient` follows."""
    field, stored = grid.fields[place], numbers[place]
    for unit in range(len(stored)):
        here = slice(unit * field.span, (unit + 1) * field.span)
        v = _direction(codes[here], numbers, grid, place, here)
        old = field.number.value(stored[unit])
        slope = (v * gradient[here]).sum(0)
        curvature = (v * (inner[here, here] @ v)).sum(0)
        wanted = torch.where(curvature > 0, old - slope / curvature.clamp(min=1e-30), old)
        new = field.number.nearest(wanted)
        step = field.number.value(new) - old
        falls = step * (2 * slope + step * curvature) < 0  # of f, with the number as it is stored
        # A scale of 0 could never come back: its codes are no longer chosen.
        takes = falls & torch.isfinite(step) & ((field.number.value(new) != 0) | (place >= len(grid.scale)))
        stored[unit] = torch.where(takes, new, stored[unit])
        gradient.addmm_(inner[:, here], v * torch.where(takes, step, 0.0))


def _direction(
    codes: torch.Tensor, numbers: list[torch.Tensor], grid: BlockGrid, place: int, here: slice
) -> torch.Tensor:
    """Return dQ/dp of the weights that share one number of a field, float32 [span, rows]."""
    if grid.tied:  # Q = s (code + sign z)
        unit, other = here.start // grid.group, grid.fields[1 - place].number
        beside = grid.sign * other.value(numbers[1 - place][unit])
        return grid.level(codes) + beside if place == 0 else beside.expand(codes.shape)
    scales = place < len(grid.scale)
    fields: tuple[Field, ...] = grid.scale if scales else grid.offset
    first = 0 if scales else len(grid.scale)
    found = grid.level(codes) if scales else torch.full_like(codes, grid.sign, dtype=torch.float32)
    for n, field in enumerate(fields, first):
        if n != place:
            # A narrower field has several numbers here, a wider one is one of which this is a part.
            units = slice(here.start // field.span, -(-here.stop // field.span))
            value = field.number.value(numbers[n][units])
            found = found * value.repeat_interleave(min(field.span, here.stop - here.start), 0)
    return found
