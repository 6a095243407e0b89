"""New values of a matrix that is stored in blocks: its codes move, or it is rounded anew."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.compress.grid import grouped, nearest_codes
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.core.packing import pack, unpack
from edgetune.core.quantised import BlockGrid, QuantisedMatrix

FIT = LeastError()
"""How fresh scales are chosen."""
WEIGHTS_AT_ONCE = 1 << 20
"""Weights rounded at a time: bounds the scratch memory."""
Bytes = NDArray[np.uint8]


def moved(grid: BlockGrid, raw: Bytes, values: torch.Tensor, name: str, unit: float = 1.0) -> Bytes:
    """Return blocks nearest to new values: of the stored ones with other codes, and of freshly fitted ones, the nearer.

        block' = argmin over {kept, fitted} of |values(block) - w'|^2,   kept: c' = argmin_c |s level(c) + o - w'|

    A block whose weights did not change keeps its bytes, whoever chose them. Of a change of less than half a step
    little remains, and none of it where every weight of a block moves so little.

    Args:
        grid: of the blocks.
        raw: uint8 [rows, bytes of a row].
        values: float32 [rows, columns], in the file's row order.
        name: of the tensor, for errors.
        unit: what all weights of the matrix are multiplied by.

    Returns:
        uint8, like `raw`.

    Raises:
        ModelError: if a block cannot be stored.
    Cost: a fit of every block; scratch for some rows.
    """
    found = np.empty_like(raw)
    for some in _parts(values):
        wanted = values[some] / unit
        stored = unpack(grid, raw[some])
        kept = QuantisedMatrix(grid, _nearest(stored, wanted), stored.numbers)
        found[some] = pack(kept)
        if grid.has_unit:  # a fit of its own would want another unit
            continue
        fitted = round_to_nearest(wanted, grid, FIT, name=name)
        better = _errors(fitted, wanted) < _errors(kept, wanted)
        blocks = found[some].reshape(-1, grid.block_bytes)
        blocks[better] = pack(fitted).reshape(-1, grid.block_bytes)[better]
        found[some] = blocks.reshape(found[some].shape)
    return found


def rounded(grid: BlockGrid, values: torch.Tensor, name: str) -> Bytes:
    """Return blocks freshly fitted to new values.

    Raises:
        ModelError: if a block cannot be stored.
    """
    return np.concatenate(
        [pack(round_to_nearest(values[some], grid, FIT, name=name)) for some in _parts(values)]
    )


def _parts(values: torch.Tensor) -> list[slice]:
    step = max(1, WEIGHTS_AT_ONCE // values.shape[1])
    return [slice(first, first + step) for first in range(0, len(values), step)]


def _errors(matrix: QuantisedMatrix, values: torch.Tensor) -> NDArray[np.float32]:
    """Return the squared distance of every block from the values it stands for."""
    squares = (matrix.dequantise() - values).square().view(-1, matrix.grid.block)
    found: NDArray[np.float32] = squares.sum(1).numpy()
    return found


def _nearest(matrix: QuantisedMatrix, values: torch.Tensor) -> torch.Tensor:
    """Return the codes nearest to values under a matrix's own numbers, its own codes where it holds them already."""
    scale, offset = matrix.grid.steps(matrix.numbers)
    codes = nearest_codes(grouped(values, matrix.grid.group), scale, offset, matrix.grid)
    return torch.where(values == matrix.dequantise(), matrix.codes, codes.to(torch.int8).flatten(1))
