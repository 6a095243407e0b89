"""The rule Mask: weights that are worth least become 0; what is kept stays as it is, or goes on a grid as well."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgetune.compress.descent import descend
from edgetune.compress.hessian import repaired_diagonal
from edgetune.compress.masking import Pruning
from edgetune.compress.polish import polish
from edgetune.compress.rounding import Round, RoundPass, round_to_nearest
from edgetune.compress.swaps import swap
from edgetune.compress.sweep import Section, Window
from edgetune.core.quantised import QuantisedMatrix


@dataclass(frozen=True, slots=True)
class Mask:
    """Prune; in a sweep with a full Hessian this is SparseGPT, and with `then` its joint form.

        q_j = m_j w_j,   or  m_j round(w_j);   m = 0 where the worth is among the least

    Args:
        pruning: which weights go.
        then: what happens to a kept one; None leaves it.
        swaps: of a mask's weights for others, in every row, at most (`swaps.swap`).
        polish: steps of conjugate gradients on the kept weights, before and after the swaps (`polish.polish`). With
            either, `then` is left for last: rounded to nearest, after which `descent.descend` makes up for it.
    Source: SparseGPT (arXiv 2301.00774), algorithm 1 and section 3.5.
    """

    pruning: Pruning
    then: Round | None = None
    swaps: int = 0
    polish: int = 0

    @property
    def span(self) -> int:
        """A block of the grid, or a group of n:m; both are powers of two."""
        return max(self.pruning.sparsity.span, self.then.span if self.then else 1)

    @property
    def whole(self) -> bool:
        """Whether the rows of a matrix compete."""
        return self.pruning.whole

    def begin(
        self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> MaskPass:
        """Start on stacked matrices; `importance` is 0 for an input that was never seen."""
        return MaskPass(self, sections, weights, importance)

    def alone(
        self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> tuple[torch.Tensor, QuantisedMatrix | None]:
        """Mask without a sweep, with 1/sqrt(H_jj) for the pivots of the inverse; then round to nearest."""
        repaired = repaired_diagonal(importance)
        kept = kept_rows(self.pruning, sections, weights, repaired.rsqrt(), importance)
        masked = weights * kept
        return (masked, None) if self.then is None else self.then.alone(sections, masked, repaired)


class MaskPass:
    """`Mask` at work on one stack of matrices; remembers the mask, and the columns for `refine`."""

    def __init__(
        self, rule: Mask, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> None:
        repaired = repaired_diagonal(importance)
        self.rule, self.sections, self.importance = rule, sections, importance
        self.kept = torch.ones_like(weights.T, dtype=torch.bool, memory_format=torch.contiguous_format)
        """bool [d, rows]."""
        if not rule.pruning.worth.swept:
            self.kept[:] = kept_rows(rule.pruning, sections, weights, repaired.rsqrt(), importance).T
        self.found = torch.empty_like(weights.T, memory_format=torch.contiguous_format)
        """float32 [d, rows], the columns so far."""
        self.round: RoundPass | None = None
        if rule.then is not None and not (rule.swaps or rule.polish):
            self.round = rule.then.begin(sections, weights, repaired)
        self._masked = Window(0, weights[:, :0], weights[:0, :0])

    def column(self, window: Window, j: int) -> torch.Tensor:
        """Return column j with what goes set to 0, float [rows]."""
        index, width = window.start + j, window.columns.shape[1]
        if self.rule.pruning.worth.swept:
            span = self.rule.pruning.sparsity.span
            if span == 1 and j == 0:
                self._decide(window, 0, width)
            if span > 1 and self.round is not None and index % self.round.rule.grid.group == 0:
                self._decide(
                    window, j, width
                )  # a guess for the scales: later groups choose again when it is their turn
            elif span > 1 and j % span == 0:
                self._decide(window, j, j + span)
        if self.round is None:
            chosen = window.columns[:, j] * self.kept[index]
        else:
            self._mask(window, j)
            chosen = self.round.column(self._masked, j)
        self.found[index] = chosen
        return chosen

    def _decide(self, window: Window, first: int, last: int) -> None:
        """Choose the mask of columns first ... last - 1 of the window."""
        here = slice(window.start + first, window.start + last)
        columns, pivots = window.columns[:, first:last], window.pivots[first:last]
        kept = kept_rows(self.rule.pruning, self.sections, columns, pivots, self.importance[here])
        self.kept[here] = kept.T

    def _mask(self, window: Window, j: int) -> None:
        """Give the rounding what it reads: column j masked, and where a group begins all columns after it."""
        width, group = window.columns.shape[1], self.rule.then.grid.group if self.rule.then else 1
        if j == 0:
            buffer = torch.empty_like(window.columns.T, memory_format=torch.contiguous_format)
            self._masked = Window(window.start, buffer.T, window.upper)
        here = slice(j, width if (window.start + j) % group == 0 else j + 1)
        kept = self.kept[window.start + here.start : window.start + here.stop].T
        self._masked.columns[:, here] = window.columns[:, here] * kept

    def refine(self, target: torch.Tensor, hessian: torch.Tensor, passes: int) -> torch.Tensor:
        """Return the weights after polish, swaps and polish; on a grid, after passes over codes and numbers as well."""
        rule, solved, kept = self.rule, self.found.T.contiguous(), self.kept.T.contiguous()
        if rule.polish:
            solved = polish(target, hessian, solved, kept, rule.polish)
        if rule.swaps:
            span = rule.pruning.sparsity.span
            solved, kept = swap(target, hessian, solved, kept, rule.swaps, span if span > 1 else None)
            solved = polish(target, hessian, solved, kept, rule.polish)
        if rule.then is None:
            return solved
        if self.round is None:
            self.round = self._rounded(rule.then, solved, hessian.diagonal())
            passes = max(passes, 1)  # nothing has made up for this rounding yet
        codes, numbers = self.round.codes, self.round.numbers
        descend(target.T.contiguous(), hessian, codes, numbers, rule.then.grid, passes, kept.T.contiguous())
        return self.round.stored(slice(None)).dequantise()

    def _rounded(self, rule: Round, weights: torch.Tensor, importance: torch.Tensor) -> RoundPass:
        """Return a pass that holds weights rounded to nearest."""
        stored = round_to_nearest(weights, rule.grid, rule.scale, importance=importance, unit=1)
        held = rule.begin(self.sections, weights, importance)
        held.codes = stored.codes.T.contiguous()
        held.numbers = [number.T.contiguous() for number in stored.numbers]
        return held

    def stored(self, rows: slice) -> QuantisedMatrix | None:
        """Return the rows' codes and numbers; None where kept weights stay floats."""
        return None if self.round is None else self.round.stored(rows)


def kept_rows(
    pruning: Pruning,
    sections: tuple[Section, ...],
    weights: torch.Tensor,
    pivots: torch.Tensor,
    importance: torch.Tensor,
) -> torch.Tensor:
    """Return what stays of stacked matrices, bool [rows, n]; each matrix gives up its own share."""
    parts = torch.split(weights, [section.rows for section in sections])
    return torch.cat([~pruning.removed(part, pivots, importance) for part in parts])
