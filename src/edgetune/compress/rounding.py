"""The rule Round: a column goes to the nearest codes of its block's grid. Without a sweep: the baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgetune.compress.descent import descend
from edgetune.compress.fitting import fit_all, fit_inner, fit_outer, joined
from edgetune.compress.grid import ScaleFit, grouped, nearest_codes, unit_of
from edgetune.compress.sweep import Section, Window
from edgetune.core.errors import ModelError
from edgetune.core.quantised import BlockGrid, QuantisedMatrix

AT_ONCE = 1 << 18
"""Weights that are rounded together without a sweep: few enough for a cache."""


@dataclass(frozen=True, slots=True)
class Round:
    """Round to a block grid; in a sweep with a full Hessian this is OPTQ.

        at a block's first column  d = fit(the block);   at a group's  s, o = fit(the group);   then
        q_j = s level(c_j) + o,   c_j the nearest code

    Both are fitted on columns with all updates so far; the reference code fits on stale ones.

    Args:
        grid: codes and stored form.
        scale: how a group's scale is chosen, weighted by 1/U_jj^2: what an error in column j still costs.
    """

    grid: BlockGrid
    scale: ScaleFit

    @property
    def span(self) -> int:
        """A block of the grid."""
        return self.grid.block

    @property
    def whole(self) -> bool:
        """No: every row is rounded for itself."""
        return False

    def begin(
        self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> RoundPass:
        """Start on stacked matrices."""
        return RoundPass(self, sections, weights)

    def alone(
        self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> tuple[torch.Tensor, QuantisedMatrix]:
        """Round to nearest."""
        name = " + ".join(section.name for section in sections)
        stored = round_to_nearest(weights, self.grid, self.scale, importance=importance, name=name, unit=1)
        return stored.dequantise(), stored


class RoundPass:
    """`Round` at work on one stack of matrices; collects codes and numbers."""

    def __init__(self, rule: Round, sections: tuple[Section, ...], weights: torch.Tensor) -> None:
        rows, columns = weights.shape
        self.rule, self.sections = rule, sections
        self.codes = torch.zeros(columns, rows, dtype=torch.int8, device=weights.device)
        """int8 [d, rows]."""
        self.numbers = [
            torch.zeros(columns // field.span, rows, dtype=field.number.dtype, device=weights.device)
            for field in rule.grid.fields
        ]
        """Of every field, [d / span, rows]."""
        self._outer: list[torch.Tensor] = []
        self._step: tuple[torch.Tensor, torch.Tensor | None] = (weights[:, 0], None)

    def column(self, window: Window, j: int) -> torch.Tensor:
        """Return the rounded column j, float [rows]."""
        grid, index = self.rule.grid, window.start + j
        if index % grid.block == 0:
            block = slice(j, j + grid.block)
            cost = window.pivots[block] ** -2
            self._outer = fit_outer(window.columns[:, block], cost, grid, self.rule.scale)
        if index % grid.group == 0:
            self._begin_group(window, j, index)
        scale, offset = self._step
        code = nearest_codes(window.columns[:, j, None], scale, offset, grid)[:, 0]
        self.codes[index] = code.to(torch.int8)
        chosen = grid.level(code) * scale
        return chosen if offset is None else chosen + offset

    def _begin_group(self, window: Window, j: int, index: int) -> None:
        grid = self.rule.grid
        group = slice(j, j + grid.group)
        cost = window.pivots[group] ** -2
        inner = fit_inner(window.columns[:, group], cost, self._outer, grid, self.rule.scale)
        found = joined(self._outer, inner, grid)
        for field, stored, kept in zip(grid.fields, found, self.numbers, strict=True):
            kept[index // field.span] = stored
        one = [number.unsqueeze(0) for number in found]
        # Of a wide field only this group's value counts here.
        scale = torch.ones_like(window.columns[:, 0])
        for field, number in zip(grid.scale, one[: len(grid.scale)], strict=True):
            scale = scale * field.number.value(number[0])
        offset = None
        if grid.offset:
            offset = grid.sign * (scale if grid.tied else torch.ones_like(scale))
            for field, number in zip(grid.offset, one[len(grid.scale) :], strict=True):
                offset = offset * field.number.value(number[0])
        require_finite(scale if offset is None else scale + offset, self.sections)
        self._step = scale, offset

    def refine(self, target: torch.Tensor, hessian: torch.Tensor, passes: int) -> torch.Tensor:
        """Return the weights after passes of `descent.descend` over codes and numbers, float [rows, d]."""
        descend(target.T.contiguous(), hessian, self.codes, self.numbers, self.rule.grid, passes)
        return self.stored(slice(None)).dequantise()

    def stored(self, rows: slice) -> QuantisedMatrix:
        """Return the rows' codes and numbers."""
        numbers = tuple(number[:, rows].T.contiguous() for number in self.numbers)
        return QuantisedMatrix(self.rule.grid, self.codes[:, rows].T.contiguous(), numbers)


def round_to_nearest(
    weights: torch.Tensor,
    grid: BlockGrid,
    scale: ScaleFit,
    *,
    importance: torch.Tensor | None = None,
    name: str = "a matrix",
    unit: float | None = None,
) -> QuantisedMatrix:
    """Round every weight by itself: what OPTQ does when the Hessian is diagonal.

    Args:
        weights: float [rows, d], d a multiple of the grid's block.
        grid: codes and stored form.
        scale: how a group's scale is chosen.
        importance: float [d], cost of a squared error per column; None means 1.
        name: tensor to name in an error.
        unit: of a grid that has one; `unit_of` the weights if not given.

    Raises:
        ModelError: if a weight is not finite or a scale exceeds what is stored.
    Source: the baseline "RTN" of OPTQ, section 4.
    """
    rows, columns = weights.shape
    cost = torch.ones(columns, device=weights.device) if importance is None else importance
    unit = unit_of(weights, grid) if unit is None else unit
    parts, first = [], 0
    for part in torch.split(weights if unit == 1 else weights / unit, max(1, AT_ONCE // max(columns, 1))):
        require_finite(part, (Section(name, rows),), first)
        numbers = fit_all(part, cost.to(part.dtype), grid, scale)
        step, offset = grid.steps(numbers)
        require_finite(step if offset is None else step + offset, (Section(name, rows),), first)
        groups = grouped(part, grid.group)
        codes = nearest_codes(groups, step, offset, grid).to(torch.int8).flatten(1)
        parts.append((codes, *numbers))
        first += len(part)
    if not parts:
        empty = fit_all(weights, cost.to(weights.dtype), grid, scale)
        return QuantisedMatrix(grid, weights.to(torch.int8), tuple(empty))
    codes, *numbers = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    return QuantisedMatrix(grid, codes, tuple(numbers), unit)


def require_finite(scales: torch.Tensor, sections: tuple[Section, ...], first: int = 0) -> None:
    """Refuse scales that cannot be stored.

    Args:
        scales: float [rows] or [rows, blocks].
        sections: whose rows they are.
        first: number of the first of them among all rows.

    Raises:
        ModelError: naming the first matrix concerned.
    """
    if bool(
        torch.isfinite(scales.sum())
    ):  # one pass; finite numbers whose sum is not are looked at one by one
        return
    good = torch.isfinite(scales).reshape(len(scales), -1).all(dim=1)
    if bool(good.all()):
        return
    row = first + int(good.logical_not().nonzero()[0])
    for section in sections:
        if row < section.rows:
            raise ModelError(
                f"row {row} is not finite or needs a block scale above 65504, the largest of fp16",
                where=section.name,
                hint="check the checkpoint; such weights come from a diverged run or a wrong dtype",
            )
        row -= section.rows
