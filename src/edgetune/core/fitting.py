"""Which grid a matrix gets whose rows are no whole blocks of the one that was asked for."""

from __future__ import annotations

from edgetune.core import quantised as q
from edgetune.core.integers import SMALLER_GROUP, whole_row

SMALLER = {
    grid.name: other
    for grid, other in (
        (q.Q2_K, q.IQ4_NL),
        (q.Q3_K, q.Q4_0),
        (q.IQ4_XS, q.IQ4_NL),
        (q.NVFP4, q.MXFP4),
        (q.Q4_K, q.Q5_0),
        (q.Q5_K, q.Q5_1),
        (q.Q6_K, q.Q8_0),
    )
}
"""Grid to the one of blocks of 32 that holds at least as much, or for the 4-bit floats the same levels."""


def fitting(grid: q.BlockGrid, columns: int) -> q.BlockGrid | None:
    """Return the grid itself, or the one that stands in for it where rows are no whole blocks of it.

    A grid that can hold a zero is replaced by one that can, so that a pruned weight stays pruned. Nothing is padded.

    Args:
        grid: the one asked for.
        columns: weights of a row, at least 1.

    Returns:
        A grid whose blocks divide the rows, of integers one of smaller groups; None where there is none, so that the
        matrix stays in float.
    Source: `tensor_type_fallback` of llama.cpp's llama-quant.cpp, but for Q2_K: there it is Q4_0, as large as IQ4_NL
        and farther from the weights. NVFP4 has none there.
    """
    if not grid.block:
        return whole_row(grid, columns)
    if columns % grid.block == 0:
        return grid
    other = SMALLER.get(grid.name) or SMALLER_GROUP.get(grid.name)
    return None if other is None else fitting(other, columns)
