"""The layout of ONNX Runtime's `MatMulNBits` and `GatherBlockQuantized`: unsigned codes in bytes, a scale a group."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.quantised import BlockGrid, QuantisedMatrix
from edgetune.core.words import from_words, to_words

BITS = (2, 4, 8)
SMALLEST = 16
"""Weights that must share a scale at least."""
NAMES = "Q4_0, Q8_0, or int4-g32, uint4-g128, int8-g64 and their like"


@dataclass(frozen=True, slots=True)
class NBits:
    """A matrix as ONNX Runtime's kernels take it.

        weight[n, k] = scales[n, g] (code[n, k] - zero[n, g]),   g = k // block,   code and zero in [0, 2^bits - 1]

    Args:
        bits: of a code: 2, 4 or 8; the first weight stands in the lowest bits of a byte.
        block: weights that share a scale, a power of two, at least 16.
        codes: uint8 [rows, groups, block bits / 8].
        scales: [rows, groups], float16 or bfloat16; of either sign.
        zeros: uint8 [rows, ceil(groups bits / 8)]; None where all are 2^(bits-1).
    """

    bits: int
    block: int
    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        """Return rows and columns of the matrix."""
        return self.codes.shape[0], self.codes.shape[1] * self.block


def bits_of(grid: BlockGrid) -> int:
    """Return the bits of a code of a grid of integers."""
    return (grid.high - grid.low).bit_length()


def refuse_for_nbits(grid: BlockGrid, where: str, runtime: str = "ONNX Runtime") -> None:
    """Refuse a grid that these kernels do not compute with.

    Args:
        grid: of a matrix, with its block filled in.
        where: the matrix, for errors.
        runtime: whose kernels, for errors.

    Raises:
        ConfigError: naming what is missing.
    """
    half = 1 << bits_of(grid) - 1
    plain = not grid.levels and len(grid.scale) == 1 and (not grid.offset or grid.tied)
    if not plain or bits_of(grid) not in BITS or grid.high != half - 1:
        raise ConfigError(f"{runtime} has no kernel for the grid {grid.name}", where=where, hint=NAMES)
    if grid.group < SMALLEST or grid.group & (grid.group - 1):
        raise ConfigError(
            f"groups of {grid.group} weights are no power of two of at least {SMALLEST}",
            where=where,
            hint="choose groups of 32, 64 or 128, for example int4-g32",
        )


def to_nbits(matrix: QuantisedMatrix) -> NBits:
    """Return a matrix in this layout; codes, scales and zero points are those of the solver.

    Args:
        matrix: on a grid that `refuse_for_nbits` lets through, columns a multiple of 32.
    """
    grid, bits = matrix.grid, bits_of(matrix.grid)
    half, (rows, columns) = 1 << bits - 1, matrix.codes.shape
    codes = _packed(matrix.codes, half, bits).reshape(rows, columns // grid.group, grid.group * bits // 8)
    zeros = _packed(matrix.numbers[1], half, bits) if grid.tied else None
    return NBits(bits, grid.group, codes, matrix.numbers[0].cpu().contiguous(), zeros)


def is_held(
    matrix: QuantisedMatrix,
    codes: torch.Tensor | None,
    scales: torch.Tensor | None,
    zeros: torch.Tensor | None,
) -> bool:
    """Say whether stored tensors are a matrix: every code, scale and zero point, bit for bit.

    Args:
        matrix: what the solver chose.
        codes, zeros: uint8, as in `NBits`, in any shape; None where there are none.
        scales: as in `NBits`, in any shape; None likewise.
    """
    bits, (rows, columns) = bits_of(matrix.grid), matrix.codes.shape
    if codes is None or scales is None:
        return False
    pairs = [(codes, matrix.codes)]
    if matrix.grid.tied and zeros is not None:
        if zeros.numel() != rows * -(-columns // matrix.grid.group * bits // 8):
            return False
        pairs.append((zeros, matrix.numbers[1]))
    own = matrix.numbers[0].cpu()
    return (
        (zeros is not None) == matrix.grid.tied
        and codes.numel() * 8 == rows * columns * bits
        and scales.dtype == own.dtype
        and torch.equal(scales.reshape(-1), own.reshape(-1))
        and all(
            torch.equal(_unpacked(found, bits, one.shape), one.cpu().to(torch.int16)) for found, one in pairs
        )
    )


def _packed(integers: torch.Tensor, half: int, bits: int) -> torch.Tensor:
    """Return rows of bytes; words end in zeros that are no part of a row."""
    words = to_words(integers.cpu().to(torch.int16) + half, bits)
    return words.view(torch.uint8)[:, : -(-integers.shape[1] * bits // 8)].contiguous()


def _unpacked(stored: torch.Tensor, bits: int, shape: torch.Size) -> torch.Tensor:
    """Return the integers of rows of bytes, int16; whatever the shape says, nothing is read beyond what is there."""
    rows = stored.reshape(shape[0], -1)
    whole = torch.nn.functional.pad(rows, (0, -rows.shape[1] % 4)).contiguous().view(torch.int32)
    return from_words(whole, bits, shape[1]).to(torch.int16) - (1 << bits - 1)
