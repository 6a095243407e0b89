"""Codes and numbers into ggml's blocks and back: one table says where every grid keeps which bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgetune.core.errors import ModelError
from edgetune.core.numbers import POWER_OF_TWO, UNSIGNED_E4M3, Number, Whole
from edgetune.core.quantised import BlockGrid, Field, QuantisedMatrix

Bytes = NDArray[np.uint8]

CODES = "codes"
"""What a part holds that is no field of the grid."""
WEIGHTS_AT_ONCE = 1 << 20
"""Packed at a time; bounds the scratch memory."""
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Doubled level of every nibble of a 4-bit float: `kvalues_mxfp4` of ggml. Nibble 8, a zero too, is never written."""
LIMITS: dict[Number, tuple[int, int]] = {POWER_OF_TWO: (0, 252), UNSIGNED_E4M3: (0, 126)}
"""Least and largest stored numbers whose weights are finite: 12 x 2^(252 - 128) is; 127 is no number."""


class Part(Protocol):
    """Some bytes of a block."""

    @property
    def of(self) -> tuple[str, ...]:
        """Whose values it holds, one after another: codes, or fields by name."""

    @property
    def bits(self) -> int:
        """Of a value, held here."""

    def write(self, values: Bytes) -> Bytes:
        """Return bytes uint8 [blocks, m bits / 8] of values uint8 [blocks, m]."""

    def read(self, raw: Bytes) -> Bytes:
        """Return values uint8 [blocks, m] of bytes, all other bits of them 0."""


@dataclass(frozen=True, slots=True)
class Plane:
    """Some bits of every value, several values to a byte.

        byte[c, j] = sum_k ((value[c, k, j] >> start) mod 2^bits) 2^(bits k),    0 <= k < 8 / bits,  0 <= j < width

    Args:
        of: whose values.
        bits: of a value, a divisor of 8.
        width: how far apart the values of a byte are; as many bytes stand side by side.
        start: the lowest of the bits.
    """

    of: tuple[str, ...]
    bits: int
    width: int = 1
    start: int = 0

    def write(self, values: Bytes) -> Bytes:
        """Return bytes."""
        parts = values.reshape(len(values), -1, 8 // self.bits, self.width)
        found: Bytes = np.zeros_like(parts[:, :, 0])
        for place in range(parts.shape[2]):
            found |= (parts[:, :, place] >> self.start & self._mask) << self.bits * place
        return found.reshape(len(values), -1)

    def read(self, raw: Bytes) -> Bytes:
        """Return values, in place."""
        bytes_ = raw.reshape(len(raw), -1, self.width)
        parts = [bytes_ >> shift & self._mask for shift in range(0, 8, self.bits)]
        found: Bytes = np.stack(parts, axis=2) << np.uint8(self.start)
        return found.reshape(len(raw), -1)

    @property
    def _mask(self) -> int:
        return (1 << self.bits) - 1


@dataclass(frozen=True, slots=True)
class Sixes:
    """Eight scales and eight minima of 6 bits in 12 bytes: four whole ones of each carry two bits of the others.

    Source: `get_scale_min_k4` of ggml-quants.c.
    """

    of: tuple[str, ...] = ("scales", "mins")
    bits: int = 6

    def write(self, values: Bytes) -> Bytes:
        """Return bytes."""
        scales, more_scales, mins, more_mins = np.split(values, 4, axis=1)
        first = scales | more_scales >> 4 << 6
        second = mins | more_mins >> 4 << 6
        return np.concatenate([first, second, more_scales & 15 | more_mins << 4], axis=1)

    def read(self, raw: Bytes) -> Bytes:
        """Return values."""
        first, second, third = np.split(raw, 3, axis=1)
        more_scales, more_mins = third & 15 | first >> 6 << 4, third >> 4 | second >> 6 << 4
        return np.concatenate([first & 63, more_scales, second & 63, more_mins], axis=1)


def _codes(bits: int, width: int = 1, start: int = 0) -> Plane:
    return Plane((CODES,), bits, width, start)


def _scales(bits: int, width: int = 1, start: int = 0) -> Plane:
    return Plane(("scales",), bits, width, start)


_D, _M, _E, _DMIN = (Plane((name,), 8) for name in ("d", "m", "e", "dmin"))
_NIBBLES, _FIFTH = _codes(4, 16), _codes(1, 1, 4)
LAYOUTS: dict[str, tuple[Part, ...]] = {
    "Q4_0": (_D, _NIBBLES),
    "Q4_1": (_D, _M, _NIBBLES),
    "Q5_0": (_D, _FIFTH, _NIBBLES),
    "Q5_1": (_D, _M, _FIFTH, _NIBBLES),
    "Q8_0": (_D, _codes(8)),
    "IQ4_NL": (_D, _NIBBLES),
    "IQ4_XS": (_D, _scales(2, 1, 4), _scales(4), _NIBBLES),
    "MXFP4": (_E, _NIBBLES),
    "NVFP4": (_D, _codes(4, 8)),
    "Q2_K": (Plane(("scales", "mins"), 4, 16), _codes(2, 32), _D, _DMIN),
    "Q3_K": (_codes(1, 32, 2), _codes(2, 32), _scales(4, 8), _scales(2, 4, 4), _D),
    "Q4_K": (_D, _DMIN, Sixes(), _codes(4, 32)),
    "Q5_K": (_D, _DMIN, Sixes(), _codes(1, 32, 4), _codes(4, 32)),
    "Q6_K": (_codes(4, 64), _codes(2, 32, 4), _scales(8), _D),
}
"""Grid to the parts of its block in their order. Source: the structures of ggml-common.h."""


def pack(matrix: QuantisedMatrix) -> Bytes:
    """Return the rows of a matrix as ggml blocks.

    Args:
        matrix: on any device.

    Returns:
        uint8 [rows, columns / block x block bytes]; decoding it gives `matrix.dequantise()` bit for bit.

    Raises:
        ModelError: if the grid has no layout, shapes form no blocks, a code lies outside the grid, or a number cannot
            be stored or makes weights that are not finite.
    Cost: scratch memory for some rows.
    """
    grid = matrix.grid
    _layout(grid)
    _check(matrix)
    rows, columns = matrix.codes.shape
    step = max(1, WEIGHTS_AT_ONCE // max(1, columns))
    found = np.empty((rows, columns // grid.block * grid.block_bytes), np.uint8)
    for first in range(0, rows, step):
        some = slice(first, first + step)
        found[some] = _packed(grid, matrix.codes[some], [stored[some] for stored in matrix.numbers])
    return found


def _packed(grid: BlockGrid, codes: torch.Tensor, numbers: Sequence[torch.Tensor]) -> Bytes:
    rows, columns = codes.shape
    count = rows * (columns // grid.block)
    values = {CODES: _coded(grid, codes.cpu().numpy()).reshape(count, grid.block)}
    for field, stored in zip(grid.fields, numbers, strict=True):
        values[field.name] = _raised(field, stored.cpu().numpy()).reshape(count, -1)
    parts = [part.write(np.concatenate([values[name] for name in part.of], axis=1)) for part in _layout(grid)]
    return np.concatenate(parts, axis=1).reshape(rows, -1)


def unpack(grid: BlockGrid, raw: Bytes) -> QuantisedMatrix:
    """Return codes and numbers of rows of ggml blocks, the inverse of `pack`.

    Args:
        grid: what they are blocks of.
        raw: uint8 [rows, bytes of a row].

    Returns:
        A matrix whose `dequantise()` is what ggml reads, on the CPU; finite if the file's numbers are.

    Raises:
        ModelError: if the grid has no layout or a row is no whole blocks.
    """
    layout = _layout(grid)
    if raw.ndim != 2 or raw.shape[1] % grid.block_bytes:
        raise ModelError(f"bytes {raw.shape} do not form {grid.name} blocks of {grid.block_bytes} bytes")
    blocks = np.ascontiguousarray(raw).reshape(-1, grid.block_bytes)
    counts = {CODES: grid.block} | {
        field.name: grid.block // field.span * field.number.dtype.itemsize for field in grid.fields
    }
    values: dict[str, Bytes] = {}
    place = 0
    for part in layout:
        widths = [counts[name] for name in part.of]
        size = sum(widths) * part.bits // 8
        found = part.read(blocks[:, place : place + size])
        place += size
        for name, own in zip(part.of, np.split(found, np.cumsum(widths)[:-1], axis=1), strict=True):
            values[name] = values[name] | own if name in values else own
    rows = len(raw)
    numbers = (_lowered(field, values[field.name]).reshape(rows, -1) for field in grid.fields)
    return QuantisedMatrix(grid, _decoded(grid, values[CODES]).reshape(rows, -1), tuple(numbers))


def _layout(grid: BlockGrid) -> tuple[Part, ...]:
    if grid.name not in LAYOUTS:
        raise ModelError(f"no packer for {grid.name}", hint=f"packed losslessly: {', '.join(LAYOUTS)}")
    return LAYOUTS[grid.name]


def _check(matrix: QuantisedMatrix) -> None:
    grid, codes = matrix.grid, matrix.codes
    rows, columns = codes.shape
    shapes = [tuple(stored.shape) for stored in matrix.numbers]
    if columns % grid.block or shapes != [(rows, columns // field.span) for field in grid.fields]:
        raise ModelError(f"codes {(rows, columns)} and numbers {shapes} do not form blocks of {grid.block}")
    if codes.numel() and (int(codes.min()) < grid.low or int(codes.max()) > grid.high):
        raise ModelError(f"a code lies outside the grid {grid.name}")
    for field, stored in zip(grid.fields, matrix.numbers, strict=True):
        number = field.number
        if stored.dtype != number.dtype:
            raise ModelError(f"{field.name} of {grid.name} is {stored.dtype}, {number.dtype} is stored")
        if stored.is_floating_point():
            inside = bool(torch.isfinite(stored).all())
        else:
            low, high = (number.low, number.high) if isinstance(number, Whole) else LIMITS[number]
            inside = bool(((stored >= low) & (stored <= high)).all())
        if not inside:
            raise ModelError(f"a number {field.name} of {grid.name} is out of range or not finite")


def _first(low: int, high: int) -> int:
    """Return which number of a range is stored as 0: whole bytes hold signed numbers as they are."""
    return low if high < 127 else 0


def _coded(grid: BlockGrid, codes: NDArray[np.int8]) -> Bytes:
    """Return codes as the file writes them: from 0 on, and levels by sign and magnitude where they are floats."""
    if _is_float(grid):
        return np.array([E2M1.index(level) for level in grid.levels], dtype=np.uint8)[codes]
    lifted = codes.astype(np.int16) - _first(grid.low, grid.high)
    return lifted.astype(np.int8).view(np.uint8)


def _decoded(grid: BlockGrid, stored: Bytes) -> torch.Tensor:
    if _is_float(grid):
        return torch.from_numpy(np.array([grid.levels.index(level) for level in E2M1], dtype=np.int8)[stored])
    return torch.from_numpy(stored.view(np.int8) + np.int8(_first(grid.low, grid.high)))


def _is_float(grid: BlockGrid) -> bool:
    return 0 < len(grid.levels) < len(E2M1)


def _raised(field: Field, stored: NDArray[np.generic]) -> Bytes:
    """Return numbers as bytes, little end first; those of less than 8 bits from 0 on."""
    lifted = stored - np.int8(_least(field)) if _least(field) else stored
    return np.ascontiguousarray(lifted).astype(lifted.dtype.newbyteorder("<"), copy=False).view(np.uint8)


def _lowered(field: Field, raw: Bytes) -> torch.Tensor:
    if field.number.dtype == torch.float16:
        return torch.from_numpy(np.ascontiguousarray(raw).view("<f2").astype(np.float16, copy=False))
    signed = field.number.dtype == torch.int8
    found = np.ascontiguousarray(raw)
    return torch.from_numpy(found.view(np.int8) + np.int8(_least(field)) if signed else found)


def _least(field: Field) -> int:
    number = field.number
    return _first(number.low, number.high) if isinstance(number, Whole) else 0
