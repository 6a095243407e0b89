"""New values of a matrix that is stored in blocks: nearest ones, the same bits on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.compress.grid import AbsMax, Step, grouped, nearest_codes
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.packing import pack, unpack
from edgetune.core.quantised import BlockGrid, QuantisedMatrix

STRETCHES = (1.0, 0.85, 0.9, 0.95, 1.05, 1.1)
"""Of the plain scale: what is tried, where a grid has few levels and no offset."""
FINE = 48
"""Levels from which the plain scale is as good as any."""
WEIGHTS_AT_ONCE = 1 << 20
"""Rounded at a time: bounds the scratch memory."""
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Stretched:
    """The plain scale times a factor: found by a largest magnitude alone, which no order of additions can change.

        s = f s_0,   s_0 of `AbsMax`

    Args:
        factor: f, > 0.
    """

    factor: float

    def __call__(self, weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid) -> Step:
        """Return scale and offset of every group."""
        scale, offset = AbsMax()(weights, importance, grid)
        return scale * self.factor, offset


def moved(grid: BlockGrid, raw: Bytes, values: torch.Tensor, name: str, unit: float = 1.0) -> Bytes:
    """Return blocks nearest to new values: the stored ones with other codes, or freshly fitted ones.

        block' = argmin over {kept, fitted_1, ...} of |values(block) - w'|^2
        kept: c' = argmin_c |s level(c) + o - w'|

    A block whose weights did not change keeps its bytes, whoever chose them. Of a change of less than half a step
    little remains, and none of it where every weight of a block moves so little.

    Args:
        grid: of the blocks.
        raw: uint8 [rows, bytes of a row].
        values: float32 [rows, columns], in the file's row order.
        name: of the tensor, for errors.
        unit: what all weights of the matrix are multiplied by; then codes alone move.

    Returns:
        uint8, like `raw`.

    Raises:
        ModelError: if a block cannot be stored.
    Cost: a rounding for every fit; scratch for some rows.
    """
    found = np.empty_like(raw)
    for some in _parts(values):
        wanted = values[some] / unit
        stored = unpack(grid, raw[some])
        kept = QuantisedMatrix(grid, _nearest(stored, wanted), stored.numbers)
        fresh = () if grid.has_unit else _fitted(grid, wanted, name)
        found[some] = _best((kept, *fresh), wanted)
    return found


def rounded(grid: BlockGrid, values: torch.Tensor, name: str) -> Bytes:
    """Return blocks freshly fitted to new values.

    Args, Raises: as `moved`.
    """
    parts = [_best(_fitted(grid, values[some], name), values[some]) for some in _parts(values)]
    return np.concatenate(parts)


def _fitted(grid: BlockGrid, values: torch.Tensor, name: str) -> tuple[QuantisedMatrix, ...]:
    few = not grid.offset and len(grid.points()) < FINE
    fits = [Stretched(factor) for factor in (STRETCHES if few else STRETCHES[:1])]
    return tuple(round_to_nearest(values, grid, fit, name=name) for fit in fits)


def _best(tries: Sequence[QuantisedMatrix], values: torch.Tensor) -> Bytes:
    """Return for every block that of the first try which nothing beats."""
    first, *others = tries
    found, least = pack(first), _errors(first, values)
    for one in others:
        errors, blocks = _errors(one, values), pack(one)
        better = errors < least
        least = torch.where(better, errors, least)
        by_block = found.reshape(-1, one.grid.block_bytes)
        by_block[better.numpy()] = blocks.reshape(-1, one.grid.block_bytes)[better.numpy()]
    return found


def _parts(values: torch.Tensor) -> list[slice]:
    step = max(1, WEIGHTS_AT_ONCE // values.shape[1])
    return [slice(first, first + step) for first in range(0, len(values), step)]


def _errors(matrix: QuantisedMatrix, values: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of every block from its values, added in one order on every machine: by halves."""
    squares = (matrix.dequantise() - values).square().view(-1, matrix.grid.block)
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        squares = squares[:, :half] + squares[:, half:]
    return squares[:, 0]


def _nearest(matrix: QuantisedMatrix, values: torch.Tensor) -> torch.Tensor:
    """Return the codes nearest to values under a matrix's own numbers, its own codes where it holds them already."""
    scale, offset = matrix.grid.steps(matrix.numbers)
    codes = nearest_codes(grouped(values, matrix.grid.group), scale, offset, matrix.grid)
    return torch.where(values == matrix.dequantise(), matrix.codes, codes.to(torch.int8).flatten(1))
