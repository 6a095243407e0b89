"""Static order: numbers of all groups first, then the columns from the heaviest input to the lightest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from edgetune.compress.descent import descend
from edgetune.compress.fitting import fit_all
from edgetune.compress.grid import ScaleFit, nearest_codes
from edgetune.compress.method import CompressionMethod
from edgetune.compress.rounding import require_finite, round_to_nearest
from edgetune.compress.solve import Moments, Solved, solve_stage
from edgetune.compress.sweep import Section, Window
from edgetune.core.events import Listener
from edgetune.core.quantised import BlockGrid, QuantisedMatrix


def solve_in_order(
    matrices: Mapping[str, torch.Tensor],
    moments: Moments | None,
    method: CompressionMethod,
    listener: Listener,
    grid: BlockGrid | None = None,
) -> dict[str, Solved]:
    """Do what `solve_stage` does, in static order: columns by descending diag H, groups as the file has them.

        W' = W P,  H' = P^T H P,   P sorts diag H;   s, o of every group fitted on W before any column is fixed

    Args:
        matrices, moments, method, listener, grid: as in `solve_stage`.

    Returns:
        as `solve_stage`.
    Cost: a copy of the moments and of the matrices more.
    Source: `--act-order --static-groups` of the reference code of OPTQ.
    """
    if moments is None or (grid or method.grid) is None:
        return solve_stage(matrices, moments, method, listener, grid)
    order = moments.hessian.diagonal().argsort(descending=True, stable=True)
    back = order.argsort()
    drift = None if moments.drift is None else moments.drift[order][:, order]
    sorted_moments = Moments(moments.hessian[order][:, order], drift)
    rounds = replace(method, static_order=False, rule=lambda chosen, scale: Ordered(chosen, scale, order))
    columns = {name: weights[:, order] for name, weights in matrices.items()}
    found = solve_stage(columns, sorted_moments, rounds, listener, grid)
    return {name: Solved(one.weights[:, back], one.stored) for name, one in found.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Ordered:
    """The rule Round on columns in another order than the file's.

    Args:
        grid: codes and stored form.
        scale: how a group's scale is chosen, weighted by diag H.
        order: int64 [d], which column of the file is swept when.
    """

    grid: BlockGrid
    scale: ScaleFit
    order: torch.Tensor

    @property
    def span(self) -> int:
        """Every column is decided by itself: its numbers stand."""
        return 1

    @property
    def whole(self) -> bool:
        """No: every row is rounded for itself."""
        return False

    def begin(
        self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> OrderedPass:
        """Fit all numbers."""
        return OrderedPass(self, sections, weights, importance)

    def alone(
        self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> tuple[torch.Tensor, QuantisedMatrix]:
        """Round to nearest."""
        back, name = self.order.argsort(), " + ".join(section.name for section in sections)
        stored = round_to_nearest(
            weights[:, back].contiguous(),
            self.grid,
            self.scale,
            importance=importance[back],
            name=name,
            unit=1,
        )
        return stored.dequantise()[:, self.order], stored


class OrderedPass:
    """`Ordered` at work on one stack of matrices."""

    def __init__(
        self, rule: Ordered, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> None:
        self.rule, self.back = rule, rule.order.argsort()
        numbers = fit_all(weights[:, self.back].contiguous(), importance[self.back], rule.grid, rule.scale)
        self.numbers = [number.T.contiguous() for number in numbers]
        """Of every field, [d / span, rows]."""
        self.codes = torch.zeros(weights.T.shape, dtype=torch.int8, device=weights.device)
        """int8 [d, rows], in the file's order."""
        self.step, self.shift = rule.grid.steps(self.numbers, 0)
        require_finite((self.step if self.shift is None else self.step + self.shift).T, sections)

    def column(self, window: Window, j: int) -> torch.Tensor:
        """Return the rounded column j, float [rows]."""
        grid, index = self.rule.grid, int(self.rule.order[window.start + j])
        scale = self.step[index // grid.group]
        offset = None if self.shift is None else self.shift[index // grid.group]
        code = nearest_codes(window.columns[:, j, None], scale, offset, grid)[:, 0]
        self.codes[index] = code.to(torch.int8)
        chosen = grid.level(code) * scale
        return chosen if offset is None else chosen + offset

    def refine(self, target: torch.Tensor, hessian: torch.Tensor, passes: int) -> torch.Tensor:
        """Return the weights after passes of `descent.descend` over codes and numbers, float [rows, d]."""
        plain = hessian[self.back][:, self.back]
        descend(target[:, self.back].T.contiguous(), plain, self.codes, self.numbers, self.rule.grid, passes)
        return self.stored(slice(None)).dequantise()[:, self.rule.order]

    def stored(self, rows: slice) -> QuantisedMatrix:
        """Return the rows' codes and numbers, in the file's order."""
        numbers = tuple(number[:, rows].T.contiguous() for number in self.numbers)
        return QuantisedMatrix(self.rule.grid, self.codes[:, rows].T.contiguous(), numbers)
