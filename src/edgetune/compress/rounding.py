"""The rule Round: a column goes to the nearest codes of its block's grid. Without a sweep: the baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgetune.compress.descent import descend
from edgetune.compress.grid import ScaleFit, nearest_codes
from edgetune.compress.sweep import Section, Window
from edgetune.core.errors import ModelError
from edgetune.core.quantised import BLOCK, BlockGrid, QuantisedMatrix


@dataclass(frozen=True, slots=True)
class Round:
    """Round to a block grid; in a sweep with a full Hessian this is OPTQ.

        at a block's first column  s = fit(the block's 32 updated columns);   then  q_j = s clamp(round(w_j /
        s))

    The scale is fitted on the columns with all updates so far; the reference code fits on stale ones.

    Args:
        grid: codes and stored form.
        scale: how a block's scale is chosen, weighted by 1/U_jj^2: what an error in column j still costs.
    """

    grid: BlockGrid
    scale: ScaleFit

    @property
    def span(self) -> int:
        """A block of the grid."""
        return BLOCK

    def begin(self, sections: tuple[Section, ...], columns: int, device: torch.device) -> RoundPass:
        """Start on stacked matrices."""
        return RoundPass(self, sections, columns, device)


class RoundPass:
    """`Round` at work on one stack of matrices; collects codes and scales."""

    def __init__(
        self, rule: Round, sections: tuple[Section, ...], columns: int, device: torch.device
    ) -> None:
        rows = sum(section.rows for section in sections)
        self.rule, self.sections = rule, sections
        self.codes = torch.zeros(columns, rows, dtype=torch.int8, device=device)
        self.scales = torch.zeros(columns // BLOCK, rows, dtype=torch.float16, device=device)

    def column(self, window: Window, j: int) -> torch.Tensor:
        """Return the rounded column j, float [rows]."""
        index = window.start + j
        if index % BLOCK == 0:
            group = window.columns[:, j : j + BLOCK]
            fitted = self.rule.scale(group, window.pivots[j : j + BLOCK] ** -2, self.rule.grid)
            require_finite(fitted, self.sections)
            self.scales[index // BLOCK] = fitted.to(torch.float16)
        scale = self.scales[index // BLOCK].to(window.columns.dtype)
        code = nearest_codes(window.columns[:, j, None], scale, self.rule.grid)[:, 0]
        self.codes[index] = code.to(torch.int8)
        return code * scale

    def refine(self, target: torch.Tensor, hessian: torch.Tensor, passes: int) -> torch.Tensor:
        """Return the weights after passes of `descent.descend` over codes and scales, float [rows, d]."""
        descend(target.T.contiguous(), hessian, self.codes, self.scales, self.rule.grid, passes)
        require_finite(self.scales.T, self.sections)
        return (self.codes.float() * self.scales.float().repeat_interleave(BLOCK, dim=0)).T.contiguous()

    def stored(self, rows: slice) -> QuantisedMatrix:
        """Return the rows' codes and scales."""
        codes, scales = self.codes[:, rows], self.scales[:, rows]
        return QuantisedMatrix(self.rule.grid, codes.T.contiguous(), scales.T.contiguous())


def round_to_nearest(
    weights: torch.Tensor,
    grid: BlockGrid,
    scale: ScaleFit,
    *,
    importance: torch.Tensor | None = None,
    name: str = "a matrix",
) -> QuantisedMatrix:
    """Round every weight by itself: what OPTQ does when the Hessian is diagonal.

    Args:
        weights: float [rows, d], d a multiple of 32.
        grid: codes and stored form.
        scale: how a block's scale is chosen.
        importance: float [d], cost of a squared error per column; None means 1.
        name: tensor to name in an error.

    Raises:
        ModelError: if a weight is not finite or a scale exceeds what fp16 holds.
    Source: the baseline "RTN" of OPTQ, section 4.
    """
    rows, columns = weights.shape
    cost = torch.ones(columns, device=weights.device) if importance is None else importance
    groups = weights.reshape(rows, columns // BLOCK, BLOCK)
    scales = scale(groups, cost.to(weights.dtype).reshape(-1, BLOCK), grid)
    require_finite(scales, (Section(name, rows),))
    codes = nearest_codes(groups, scales, grid)
    return QuantisedMatrix(grid, codes.to(torch.int8).reshape(rows, columns), scales.to(torch.float16))


def require_finite(scales: torch.Tensor, sections: tuple[Section, ...]) -> None:
    """Refuse scales that fp16 cannot hold.

    Args:
        scales: float [rows] or [rows, blocks].
        sections: whose rows they are.

    Raises:
        ModelError: naming the first matrix concerned.
    """
    good = torch.isfinite(scales).reshape(len(scales), -1).all(dim=1)
    if bool(good.all()):
        return
    first = int(good.logical_not().nonzero()[0])
    for section in sections:
        if first < section.rows:
            raise ModelError(
                f"row {first} is not finite or needs a block scale above 65504, the largest of fp16",
                where=section.name,
                hint="check the checkpoint; such weights come from a diverged run or a wrong dtype",
            )
        first -= section.rows
