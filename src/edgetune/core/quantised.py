"""A matrix on a block grid: integer codes and one fp16 scale per 32 weights, as GGUF stores them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

BLOCK = 32
"""Weights that share one scale, along the input dimension (Q4_0 and Q8_0)."""


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """A symmetric integer grid with one fp16 scale per block of 32.

        weight = scale * code,   code in [low, high]

    Source: ggml block layouts Q4_0 (d*(q-8)) and Q8_0 (d*q).
    """

    name: str
    """GGUF type name, for example `Q4_0`."""
    low: int
    high: int
    block_bytes: int
    """Stored bytes per block of 32: the fp16 scale and the packed codes."""


Q4_0 = BlockGrid("Q4_0", -8, 7, 18)
Q8_0 = BlockGrid("Q8_0", -127, 127, 34)
GRIDS = {grid.name: grid for grid in (Q4_0, Q8_0)}


@dataclass(frozen=True, slots=True)
class QuantisedMatrix:
    """One matrix after compression; what the solver chose is exactly what is stored.

    Args:
        grid: the block grid.
        codes: int8 [rows, columns], each in [grid.low, grid.high].
        scales: float16 [rows, columns / 32]; may be negative.
    """

    grid: BlockGrid
    codes: torch.Tensor
    scales: torch.Tensor

    def dequantise(self) -> torch.Tensor:
        """Return the float32 [rows, columns] weights: `scale * code`, exact in fp32 (11 + 8 bits)."""
        rows, columns = self.codes.shape
        blocks = self.codes.reshape(rows, columns // BLOCK, BLOCK).to(torch.float32)
        return (blocks * self.scales.to(torch.float32).unsqueeze(-1)).reshape(rows, columns)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the packed blocks in a GGUF file."""
        return self.codes.numel() // BLOCK * self.grid.block_bytes


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
        rows = self.blocks.view(-1, self.grid.block_bytes)
        scales = rows[:, :2].contiguous().view(torch.float16).float()
        packed = rows[:, 2:]
        if packed.shape[1] == BLOCK:
            codes = packed.contiguous().view(torch.int8).float()
        else:
            codes = torch.cat([packed & 15, packed >> 4], dim=1).float() - 8
        return (codes * scales).view(self.shape)


StoredTensor = torch.Tensor | PackedTensor
"""Base weights where they are stored: floats of any width, or blocks."""


def part_of(tensor: StoredTensor, start: int, count: int) -> StoredTensor:
    """Return a range of the flattened tensor, without a copy."""
    return (
        tensor.part(start, count)
        if isinstance(tensor, PackedTensor)
        else tensor.view(-1)[start : start + count]
    )


def whole_blocks(shape: Sequence[int]) -> bool:
    """Say whether a tensor of this shape can be packed."""
    return len(shape) == 2 and shape[1] % BLOCK == 0
