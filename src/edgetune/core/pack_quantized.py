"""The layout `pack-quantized` of compressed-tensors: rows packed into words, zero points packed along the outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from edgetune.core.errors import ModelError
from edgetune.core.levels import FLOATS, LevelMatrix, Tensors, finite_scales, grouping, taken
from edgetune.core.quantised import QuantisedMatrix
from edgetune.core.words import WORD, from_words, to_words

CODES, SCALES, ZEROS, SHAPE, GROUP = (
    "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
)  # fmt: skip
PARTS = (CODES, SCALES, ZEROS, SHAPE, GROUP)
"""Last parts of the names of what stands for a layer's weight."""


@dataclass(frozen=True, slots=True)
class PackQuantized:
    """How the layers of a configuration group are to be read.

    Args:
        bits: of a code, 1 to 8.
        symmetric: whether there are no zero points.
        ordered: whether columns were sorted before they were grouped, so that `weight_g_idx` cannot be guessed.
    """

    bits: int
    symmetric: bool
    ordered: bool = False

    def matrix(self, tensors: Tensors, where: str) -> LevelMatrix:
        """Return a layer's matrix.

            weight[o, i] = scale[o, g] (q[o, i] - zero[o, g]),   q and zero stored with 2^(bits - 1) added

        Args:
            tensors: weight_packed int32 [out, ceil(in bits / 32)], weight_scale [out, groups] (one for all as [1]),
                weight_shape int64 [2], and if not symmetric weight_zero_point int32 [ceil(out bits / 32), groups].
            where: the layer, for errors.

        Raises:
            ModelError: if a tensor is missing, or types, shapes or groups do not fit together.
        Source: `compressors/pack_quantized` of compressed-tensors 0.20.
        """
        words = taken(tensors, CODES, (torch.int32,), where)
        shape = taken(tensors, SHAPE, (torch.int64, torch.int32), where).tolist()
        scales = finite_scales(taken(tensors, SCALES, FLOATS, where), where)
        if self.ordered and GROUP not in tensors:
            raise ModelError("columns were sorted, and no weight_g_idx says how", where=where)
        if len(shape) != 2 or min(shape) < 1 or words.dim() != 2:
            raise ModelError("a quantised layer is no matrix", where=where)
        rows, columns = shape
        if scales.numel() == 1:
            scales = scales.reshape(1, 1).expand(rows, 1)
        if words.shape != (rows, -(-columns * self.bits // WORD)) or (scales.dim(), len(scales)) != (2, rows):
            raise ModelError(
                f"weight_packed {tuple(words.shape)} and weight_scale {tuple(scales.shape)} are not those of a matrix "
                f"{rows} x {columns} in {self.bits} bits",
                where=where,
            )
        half = 1 << self.bits - 1
        group = grouping(tensors, GROUP, columns, scales.shape[1], where)
        levels = from_words(words, self.bits, columns).to(torch.int16) - half
        if not self.symmetric:
            zeros = taken(tensors, ZEROS, (torch.int32,), where)
            if zeros.shape != (-(-rows * self.bits // WORD), scales.shape[1]):
                raise ModelError(f"weight_zero_point is {tuple(zeros.shape)}", where=where)
            zero = from_words(zeros.T, self.bits, rows).to(torch.int16).T - half
            levels -= zero[:, group]
        return LevelMatrix(levels, scales, group)


def pack_quantized_tensors(matrix: QuantisedMatrix) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds of a matrix on an integer grid.

    Args:
        matrix: on a grid of `core.integers`.

    Raises:
        ModelError: for other grids.
    """
    grid = matrix.grid
    if grid.fields[0].name != "scale":
        raise ModelError(f"{grid.name} has no place in a pack-quantized checkpoint")
    bits = (grid.high - grid.low).bit_length()
    half = 1 << bits - 1
    found = {
        CODES: to_words(matrix.codes.cpu().to(torch.int16) + half, bits),
        SCALES: matrix.numbers[0].cpu().contiguous(),
        SHAPE: torch.tensor(matrix.codes.shape),
    }
    if grid.tied:
        zeros = matrix.numbers[1].cpu().to(torch.int16) + half
        found[ZEROS] = to_words(zeros.T, bits).T.contiguous()
    return found
