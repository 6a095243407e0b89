"""Matrices of scaled integers in groups of any order, as other tools' checkpoints hold them; carried into blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from edgetune.core.errors import ModelError
from edgetune.core.quantised import BLOCK, Q4_0, Q5_0, Q8_0, QuantisedMatrix

Tensors = Mapping[str, torch.Tensor]
"""Tensors of one layer, by the last part of their names."""
EVERY_BYTE = replace(Q8_0, low=-128)
"""Q8_0 with the code that its own quantiser never writes, and that every reader of it computes with."""


@dataclass(frozen=True, slots=True)
class LevelMatrix:
    """One matrix of a checkpoint.

        weight[o, i] = scales[o, group[i]] levels[o, i]

    Args:
        levels: int16 [out, in], codes less their zero points.
        scales: float32 [out, groups], exactly what is stored.
        group: int64 [in], which scale each input takes; in any order where columns were sorted before.
    """

    levels: torch.Tensor
    scales: torch.Tensor
    group: torch.Tensor

    def dequantise(self) -> torch.Tensor:
        """Return the float32 [out, in] weights: exact for scales of 16 bits, since a level has 9 with its sign."""
        return self.levels.float() * self.scales[:, self.group]

    def in_blocks(self) -> QuantisedMatrix | None:
        """Return the same weights, bit for bit, in the smallest GGUF type of blocks of 32 with room for them; or None.

        Q4_0 holds levels -8 ... 7, Q5_0 -16 ... 15 (4 bits with any zero point), Q8_0 -128 ... 127. A block has one
        scale, so that groups have to be whole blocks, and it is fp16, so that a bfloat16 scale has to be in its range.
        """
        if self.levels.numel() == 0 or self.levels.shape[1] % BLOCK:
            return None
        each = self.group.view(-1, BLOCK)
        stored = self.scales.half()
        whole = bool((each == each[:, :1]).all()) and torch.equal(stored.float(), self.scales)
        low, high = self.levels.min(), self.levels.max()
        fit = [grid for grid in (Q4_0, Q5_0, EVERY_BYTE) if grid.low <= low and high <= grid.high]
        if not whole or not fit:
            return None
        return QuantisedMatrix(fit[0], self.levels.to(torch.int8), (stored[:, each[:, 0]].contiguous(),))


def taken(tensors: Tensors, kind: str, dtypes: tuple[torch.dtype, ...], where: str) -> torch.Tensor:
    """Return the tensor of a layer that must be there, of one of some types.

    Raises:
        ModelError: if it is missing or of another type.
    """
    if kind not in tensors:
        raise ModelError(f"a quantised layer has no {kind}", where=where, hint="copy the checkpoint again")
    if tensors[kind].dtype not in dtypes:
        raise ModelError(f"{kind} is stored as {tensors[kind].dtype}, {dtypes[0]} is expected", where=where)
    return tensors[kind]


def grouping(tensors: Tensors, kind: str, columns: int, groups: int, where: str) -> torch.Tensor:
    """Return which scale each input takes: as stored, else neighbours by equal shares.

    Args:
        tensors: of the layer.
        kind: of the tensor that says it, int [columns].
        columns: inputs.
        groups: scales of an output.
        where: the layer, for errors.

    Raises:
        ModelError: if what is stored names no group, or inputs form no equal groups.
    """
    if kind not in tensors:
        if columns % groups:
            raise ModelError(f"{columns} inputs form no {groups} equal groups", where=where)
        return torch.arange(columns) // (columns // groups)
    found = taken(tensors, kind, (torch.int32, torch.int64), where).long()
    if found.shape != (columns,) or bool((found < 0).any()) or bool((found >= groups).any()):
        raise ModelError(f"{kind} names groups that the layer has no scales for", where=where)
    return found


def finite_scales(scales: torch.Tensor, where: str) -> torch.Tensor:
    """Return scales as float32.

    Raises:
        ModelError: if one is not finite.
    """
    if not bool(torch.isfinite(scales).all()):
        raise ModelError("a scale is NaN or infinite", where=where, hint="copy the checkpoint again")
    return scales.float()


FLOATS = (torch.float16, torch.bfloat16, torch.float32)
"""Types a scale may be stored in."""
