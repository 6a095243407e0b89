"""Matrices on block grids: codes and the numbers that blocks share, as GGUF stores them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from edgetune.core.numbers import HALF, POWER_OF_TWO, UNSIGNED_E4M3, Number, Whole

BLOCK = 32
"""Weights of a block of Q4_0, Q4_1 and Q8_0, the grids that are computed with as they are stored."""


@dataclass(frozen=True, slots=True)
class Field:
    """A number that neighbouring weights of a row share."""

    name: str
    """ggml's name of it."""
    span: int
    """Weights that share one."""
    number: Number
    """How it is stored."""


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """What weights can be in a block of a file: a few levels, scaled and shifted by numbers that the block stores.

        weight = s * level(code) + sign * o,   s = product of `scale`,  o = product of `offset` (0 without any)
        level(code) = code in [low, high], or levels[code]

    A grid of two fields each is two-level: one half for the block, one small integer for a group of it. Of a `tied`
    offset o is s times that product: a zero point.

    Source: ggml-common.h; every product is exact in float32, so that any order of evaluation gives the same weight.
    """

    name: str
    """GGUF type name, for example `Q4_0`."""
    low: int
    high: int
    block_bytes: int
    """Stored bytes of a block."""
    block: int = BLOCK
    """Weights of a block; 0 for a whole row, until `core.fitting` knows how long that is."""
    scale: tuple[Field, ...] = (Field("d", BLOCK, HALF),)
    """Factors of the scale, the widest first; the last belongs to a group."""
    offset: tuple[Field, ...] = ()
    """Factors of the offset, the widest first."""
    sign: int = 1
    """Of the offset."""
    levels: tuple[int, ...] = ()
    """Ascending; empty where a code is its own level."""
    tied: bool = False
    """Whether the offset counts in scales, as an integer zero point does; scale and offset are one field each then."""

    @property
    def group(self) -> int:
        """Weights that share a scale."""
        return self.scale[-1].span

    @property
    def fields(self) -> tuple[Field, ...]:
        """Everything stored beside codes, in the order of `QuantisedMatrix.numbers`."""
        return self.scale + self.offset

    @property
    def bits(self) -> float:
        """Stored bits a weight."""
        return 8 * self.block_bytes / self.block

    @property
    def signed(self) -> bool:
        """Whether a scale may be negative."""
        return self.scale[0].number is HALF and not self.offset

    @property
    def largest_scale(self) -> float:
        """The largest that can be stored (by the block, where the grid is of two levels)."""
        return 224.0 if self.scale[0].number is UNSIGNED_E4M3 else 65504.0

    @property
    def has_zero(self) -> bool:
        """Whether a weight can be exactly 0 beside others."""
        return not self.offset and (0 in self.levels if self.levels else self.low <= 0 <= self.high)

    @property
    def has_unit(self) -> bool:
        """Whether a file holds one more number for the whole matrix: the 8-bit scales alone reach few magnitudes."""
        return self.scale[0].number is UNSIGNED_E4M3

    def points(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return the levels in the order of their codes, float32."""
        known = self.levels or tuple(range(self.low, self.high + 1))
        return torch.tensor(known, dtype=torch.float32, device=device)

    def level(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the levels of codes, float32."""
        return self.points(codes.device)[codes.long()] if self.levels else codes.to(torch.float32)

    def steps(
        self, numbers: Sequence[torch.Tensor], dim: int = -1
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return scale and signed offset of every group, float32; None for no offset.

        Args:
            numbers: stored numbers of `fields`, along `dim` one for each span.
            dim: along which the weights of a row lie.
        """
        spread = [
            field.number.value(stored).repeat_interleave(field.span // self.group, dim)
            for field, stored in zip(self.fields, numbers, strict=True)
        ]
        scale = torch.stack(spread[: len(self.scale)]).prod(0) if len(self.scale) > 1 else spread[0]
        if not self.offset:
            return scale, None
        own = spread[len(self.scale) :]
        offset = self.sign * (own[0] if len(own) == 1 else torch.stack(own).prod(0))
        return scale, scale * offset if self.tied else offset


_E2M1 = (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12)
"""Levels of a 4-bit float, doubled as in ggml."""
_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""`kvalues_iq4nl` of ggml."""
_LARGE = 256


def _two(group: int, number: Number, name: str = "scales", head: str = "d") -> tuple[Field, Field]:
    return Field(head, _LARGE, HALF), Field(name, group, number)


def _mins(group: int, number: Number) -> tuple[Field, Field]:
    return _two(group, number, "mins", "dmin")


_MIN = (Field("m", BLOCK, HALF),)
Q4_0 = BlockGrid("Q4_0", -8, 7, 18)
Q4_1 = BlockGrid("Q4_1", 0, 15, 20, offset=_MIN)
Q5_0 = BlockGrid("Q5_0", -16, 15, 22)
Q5_1 = BlockGrid("Q5_1", 0, 31, 24, offset=_MIN)
Q8_0 = BlockGrid("Q8_0", -127, 127, 34)
IQ4_NL = BlockGrid("IQ4_NL", 0, 15, 18, levels=_NL)
IQ4_XS = BlockGrid("IQ4_XS", 0, 15, 136, _LARGE, _two(32, Whole(-32, 31)), levels=_NL)
MXFP4 = BlockGrid("MXFP4", 0, 14, 17, scale=(Field("e", BLOCK, POWER_OF_TWO),), levels=_E2M1)
NVFP4 = BlockGrid("NVFP4", 0, 14, 36, 64, (Field("d", 16, UNSIGNED_E4M3),), levels=_E2M1)
Q2_K = BlockGrid("Q2_K", 0, 3, 84, _LARGE, _two(16, Whole(0, 15)), _mins(16, Whole(0, 15)), -1)
Q3_K = BlockGrid("Q3_K", -4, 3, 110, _LARGE, _two(16, Whole(-32, 31)))
Q4_K = BlockGrid("Q4_K", 0, 15, 144, _LARGE, _two(32, Whole(0, 63)), _mins(32, Whole(0, 63)), -1)
Q5_K = BlockGrid("Q5_K", 0, 31, 176, _LARGE, _two(32, Whole(0, 63)), _mins(32, Whole(0, 63)), -1)
Q6_K = BlockGrid("Q6_K", -32, 31, 210, _LARGE, _two(16, Whole(-128, 127)))
_ALL = (Q2_K, Q3_K, IQ4_XS, MXFP4, Q4_0, IQ4_NL, NVFP4, Q4_K, Q4_1, Q5_0, Q5_K, Q5_1, Q6_K, Q8_0)
GRIDS = {grid.name: grid for grid in _ALL}
"""By name, in the order of their bits a weight."""
HELD = {grid.name: grid for grid in (Q4_0, Q8_0)}
"""Those that a base may be rounded to before it is tuned."""


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """One matrix after compression; what the solver chose is exactly what is stored.

    Args:
        grid: the block grid.
        codes: int8 [rows, columns], each in [grid.low, grid.high].
        numbers: one tensor [rows, columns / span] for every field of the grid, in the field's stored dtype.
        unit: what every weight is multiplied by, a power of two, so that this loses nothing; 1 unless `grid.has_unit`.
    """

    grid: BlockGrid
    codes: torch.Tensor
    numbers: tuple[torch.Tensor, ...]
    unit: float = 1.0

    def dequantise(self) -> torch.Tensor:
        """Return the float32 [rows, columns] weights, exactly what a reader of the file computes."""
        rows, columns = self.codes.shape
        scale, offset = self.grid.steps(self.numbers)
        groups = self.grid.level(self.codes.reshape(rows, -1, self.grid.group)).mul_(scale.unsqueeze(-1))
        if offset is not None:
            groups += offset.unsqueeze(-1)
        if self.unit != 1:
            groups *= self.unit
        return groups.reshape(rows, columns)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the packed blocks in a GGUF file."""
        return self.codes.numel() // self.grid.block * self.grid.block_bytes

    def rows(self, which: slice) -> QuantisedMatrix:
        """Return some of the rows."""
        return QuantisedMatrix(self.grid, self.codes[which], tuple(stored[which] for stored in self.numbers))

    def to(self, device: torch.device | str) -> QuantisedMatrix:
        """Return the matrix on a device."""
        numbers = tuple(stored.to(device) for stored in self.numbers)
        return QuantisedMatrix(self.grid, self.codes.to(device), numbers, self.unit)


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A tensor as it is stored in blocks: read only, never unpacked as a whole.

    Args:
        grid: the block grid.
        blocks: uint8 [n / 32 * grid.block_bytes], contiguous: the ggml blocks of the flattened tensor.
        shape: of the tensor; the last dimension is a multiple of 32.
    """

    grid: BlockGrid
    blocks: torch.Tensor
    shape: tuple[int, ...]

    def numel(self) -> int:
        """Return the number of weights."""
        return self.blocks.numel() // self.grid.block_bytes * BLOCK

    def part(self, start: int, count: int) -> PackedTensor:
        """Return elements `start ... start + count - 1` of the flattened tensor; both are multiples of 32."""
        size = self.grid.block_bytes
        return PackedTensor(
            self.grid, self.blocks[start // BLOCK * size :][: count // BLOCK * size], (count,)
        )

    def dequantise(self) -> torch.Tensor:
        """Return the float32 weights in their shape."""
        rows, head = self.blocks.view(-1, self.grid.block_bytes), 2 * len(self.grid.fields)
        numbers = rows[:, :head].contiguous().view(torch.float16).float()
        packed = rows[:, head:]
        if packed.shape[1] == BLOCK:
            codes = packed.contiguous().view(torch.int8).float()
        else:
            codes = torch.cat([packed & 15, packed >> 4], dim=1).float() + self.grid.low
        values = codes.mul_(numbers[:, :1])
        return (values.add_(numbers[:, 1:]) if head > 2 else values).view(self.shape)


@dataclass(frozen=True, slots=True)
class CodedTensor:
    """A tensor in codes that nothing here multiplies by: rows become floats whenever they are asked for.

    Args:
        shape: of the tensor, of two dimensions or more.
        read: called with some rows of [rows, last dimension], as a slice or int64 [n]; gives them in float32.
    """

    shape: tuple[int, ...]
    read: Callable[[slice | torch.Tensor], torch.Tensor]

    def numel(self) -> int:
        """Return the number of weights."""
        return prod(self.shape)

    def part(self, start: int, count: int) -> torch.Tensor:
        """Return elements `start ... start + count - 1` of the flattened tensor, float32."""
        width = self.shape[-1]
        first, last = start // width, -(-(start + count) // width)
        return self.read(slice(first, last)).view(-1)[start - first * width :][:count]


StoredTensor = torch.Tensor | PackedTensor
"""What is computed with as it is stored: floats of any width, or blocks."""
BaseTensor = StoredTensor | CodedTensor
"""Base weights where they are stored."""


def part_of(tensor: BaseTensor, start: int, count: int) -> StoredTensor:
    """Return a range of the flattened tensor: without a copy, or in float32 where it is of codes."""
    return (
        tensor.reshape(-1)[start : start + count]
        if isinstance(tensor, torch.Tensor)
        else tensor.part(start, count)
    )


def values_of(tensor: BaseTensor, start: int, count: int) -> torch.Tensor:
    """Return a range of the flattened tensor in floats: of their own type, of codes and blocks float32."""
    part = part_of(tensor, start, count)
    return part if isinstance(part, torch.Tensor) else part.dequantise()


def whole_blocks(shape: Sequence[int]) -> bool:
    """Say whether a tensor of this shape can be packed."""
    return len(shape) == 2 and shape[1] % BLOCK == 0
