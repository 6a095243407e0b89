"""The blocked column sweep: fix a matrix column by column, let the columns still open make up for each error.

The sweep knows columns and one Hessian. What a column becomes is a `ColumnRule`: rounded, masked, or both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.quantised import QuantisedMatrix

RUN = 32
"""Columns that are updated one by one; the rest of a block gets one product for each run."""


@dataclass(frozen=True, slots=True)
class Section:
    """Rows of one named matrix among those swept together: q, k and v share a Hessian, one sweep does all."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class Window:
    """The block of columns that the sweep is in.

    Args:
        start: index of the block's first column in the matrix.
        columns: float [rows, width]. Columns before the current one are final; all others carry every update when a
            run of 32 begins, those of the present run always: what a group's grid or mask must be fitted on.
        upper: float [width, width], U's part of the block.
    """

    start: int
    columns: torch.Tensor
    upper: torch.Tensor

    @property
    def pivots(self) -> torch.Tensor:
        """U_jj, float [width]. Setting weight w_j to q costs (w_j - q)^2 / U_jj^2 after compensation."""
        return self.upper.diagonal()


class ColumnPass(Protocol):
    """A rule at work on one matrix: it decides column after column and remembers what it decided."""

    def column(self, window: Window, j: int) -> torch.Tensor:
        """Return what column j of the window becomes, float [rows]; called once a column, left to right."""

    def refine(self, target: torch.Tensor, hessian: torch.Tensor, passes: int) -> torch.Tensor:
        """Return what the columns are after so many passes over them, float [rows, d]; never further from the target.

        Args:
            target: float [rows, d], what was swept.
            hessian: float [d, d], damped as the sweep's was.
            passes: at least 1.
        """

    def stored(self, rows: slice) -> QuantisedMatrix | None:
        """Return the stored form of some rows after the sweep, None where the weights stay plain floats."""


class ColumnRule(Protocol):
    """What tells one-shot methods apart: Round is OPTQ, Mask is SparseGPT, Mask then Round is joint."""

    @property
    def span(self) -> int:
        """Neighbouring columns decided together; the sweep's block must be a multiple of it."""

    @property
    def whole(self) -> bool:
        """Whether all rows of a matrix have to be decided together, for what one becomes depends on the others."""

    def begin(
        self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> ColumnPass:
        """Start on matrices stacked by rows.

        Args:
            sections: whose rows they are.
            weights: float32 [rows, d], what is solved for.
            importance: float32 [d], above 0: diag H.
        """

    def alone(
        self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> tuple[torch.Tensor, QuantisedMatrix | None]:
        """Decide everything without a sweep, no column making up for another: (float [rows, d], stored form)."""


def sweep(weights: torch.Tensor, upper: torch.Tensor, decide: ColumnPass, block: int = 128) -> torch.Tensor:
    """Fix every column in turn and let the columns still open make up for its error.

        q_j = rule(w_j),   e_j = (w_j - q_j) / U_jj,   W[:, j+1:] -= e_j U[j, j+1:]

    Inside a run of 32 the update is immediate; the rest of the block gets one product when the run closes, columns
    after the block one when that does.

    Args:
        weights: float [rows, d]; left as it is.
        upper: float [d, d], `Factor.upper`.
        decide: the rule at work; its window is a view of the sweep's own columns.
        block: columns per block, at least 1.

    Returns:
        float [rows, d], exactly the columns the rule returned.
    Cost: rows * d^2 / 2 multiply-adds and one copy of the weights.
    Source: OPTQ, algorithm 1.
    """
    if block < 1:
        raise ConfigError(f"a sweep needs a block of at least 1 column, not {block}")
    width = weights.shape[1]
    solved = weights.T.contiguous()  # a column in one piece: the inner loop is bound by memory
    for start in range(0, width, block):
        end = min(start + block, width)
        inner, open_block = upper[start:end, start:end], solved[start:end]
        window = Window(start, open_block.T, inner)
        errors = torch.empty_like(open_block)
        for first in range(0, end - start, RUN):
            last = min(first + RUN, end - start)
            for j in range(first, last):
                chosen = decide.column(window, j)
                errors[j] = (open_block[j] - chosen) / inner[j, j]
                open_block[j + 1 : last].addr_(inner[j, j + 1 : last], errors[j], alpha=-1)
                open_block[j] = chosen
            open_block[last:].addmm_(inner[first:last, last:].T, errors[first:last], alpha=-1)
        solved[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return solved.T.contiguous()
