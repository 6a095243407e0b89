"""The layout of GPTQ checkpoints (AutoGPTQ, GPTQModel): inputs packed into words, a zero point a group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgetune.core.errors import ModelError
from edgetune.core.integers import BITS
from edgetune.core.levels import FLOATS, LevelMatrix, Tensors, finite_scales, grouping, taken
from edgetune.core.quantised import QuantisedMatrix
from edgetune.core.words import WORD, from_words, to_words

CODES, ZEROS, SCALES, GROUP = "qweight", "qzeros", "scales", "g_idx"
PARTS = (CODES, ZEROS, SCALES, GROUP)
"""Last parts of the names of what stands for a layer's weight."""


@dataclass(frozen=True, slots=True)
class Gptq:
    """How a checkpoint is to be read.

    Args:
        bits: of a code: 2, 3, 4 or 8; None where layers differ, so that each says it by its shape.
        ordered: whether columns were sorted before they were grouped, so that `g_idx` cannot be guessed (`desc_act`).
        lift: added to stored zero points: 1 for the format `gptq`, 0 for `gptq_v2` (`zero_points`).
    """

    bits: int | None
    ordered: bool
    lift: int

    def matrix(self, tensors: Tensors, where: str) -> LevelMatrix:
        """Return a layer's matrix.

            weight[o, i] = scales[g, o] (q[i, o] - zero[g, o]),   g = g_idx[i]

        Args:
            tensors: qweight int32 [in bits / 32, out], qzeros int32 [groups, out bits / 32], scales [groups, out], and
                g_idx int [in].
            where: the layer, for errors.

        Raises:
            ModelError: if a tensor is missing, or types, shapes or groups do not fit together.
        Source: `qlinear_cuda.py` of AutoGPTQ; 3 bits run on across words, as `pack` there writes them.
        """
        words, zeros = (taken(tensors, kind, (torch.int32,), where) for kind in (CODES, ZEROS))
        scales = taken(tensors, SCALES, FLOATS, where)
        if self.ordered and GROUP not in tensors:
            raise ModelError(
                "columns were sorted (desc_act), and no g_idx says how",
                where=where,
                hint="copy the checkpoint again",
            )
        if not words.dim() == zeros.dim() == scales.dim() == 2 or 0 in (*words.shape, *scales.shape):
            raise ModelError("a quantised layer is no matrix", where=where)
        bits = self.bits or self._bits_of(words, zeros, scales, where)
        columns, rows = words.shape[0] * WORD // bits, words.shape[1]
        groups = scales.shape[0]
        shapes = (tuple(words.shape), tuple(zeros.shape), tuple(scales.shape))
        packed = (columns * bits // WORD, rows), (groups, -(-rows * bits // WORD)), (groups, rows)
        if shapes != packed or columns * bits % WORD:
            raise ModelError(f"qweight, qzeros and scales {shapes} do not fit {bits} bits", where=where)
        group = grouping(tensors, GROUP, columns, groups, where)
        zero = zero_points(zeros, bits, rows, self.lift).to(torch.int16).T
        codes = from_words(words.T, bits, columns).to(torch.int16)
        return LevelMatrix(codes - zero[:, group], finite_scales(scales.T, where), group)

    def _bits_of(self, words: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, where: str) -> int:
        rows = scales.shape[1]
        for bits in BITS:
            if zeros.shape[1] == -(-rows * bits // WORD) and words.shape[0] % bits == 0:
                return bits
        raise ModelError(f"codes of none of {BITS} bits", where=where)


def zero_points(words: torch.Tensor, bits: int, rows: int, lift: int) -> torch.Tensor:
    """Return the zero points of a layer.

        stored = (zeros - lift (1 + 2^bits + 4^bits + ...)) mod 2^32 of a word of 2, 4 or 8 bits a field: borrows travel
        stored = (zero - lift) mod 2^bits of a field of 3 bits

    Args:
        words: int32 [groups, ceil(rows bits / 32)], as stored.
        bits: of a zero point: 2, 3, 4 or 8.
        rows: outputs.
        lift: 0 or 1.

    Returns:
        uint8 [groups, rows].
    Source: `convert_gptq_v2_to_v1_format_module` of GPTQModel 7.7.0. Only a zero point of 0 makes a borrow.
    """
    if WORD % bits:
        return (from_words(words, bits, rows) + lift) & ((1 << bits) - 1)
    ones = sum(lift << place for place in range(0, WORD, bits))
    lifted = words.cpu().numpy().view(np.uint32) + np.uint32(ones)
    return from_words(torch.from_numpy(lifted.view(np.int32)), bits, rows)


def gptq_tensors(matrix: QuantisedMatrix) -> dict[str, torch.Tensor]:
    """Return what a checkpoint of the format `gptq` holds of a matrix on a symmetric integer grid.

    Args:
        matrix: on a grid of `core.integers` without zero points, rows and columns multiples of 32.

    Raises:
        ModelError: for other grids and shapes.
    """
    grid, (rows, columns) = matrix.grid, matrix.codes.shape
    if grid.fields[0].name != "scale" or grid.tied or rows % WORD or columns % WORD:
        raise ModelError(f"a matrix {rows} x {columns} on {grid.name} has no place in a GPTQ checkpoint")
    bits = (grid.high - grid.low).bit_length()
    half = 1 << bits - 1
    scales = matrix.numbers[0].T.contiguous()
    zeros = torch.full(scales.shape, half - 1, dtype=torch.int16)
    return {
        CODES: to_words(matrix.codes.cpu().to(torch.int16) + half, bits).T.contiguous(),
        ZEROS: to_words(zeros, bits),
        SCALES: scales,
        GROUP: (torch.arange(columns) // grid.group).int(),
    }
