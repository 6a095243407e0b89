"""A matrix on a block grid: integer codes and one fp16 scale per 32 weights, as GGUF stores them."""

from __future__ import annotations

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
