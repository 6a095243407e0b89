"""Layers that stand for compressed ones while a model is traced for ExecuTorch, on the solver's codes."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgetune.core.errors import ConfigError
from edgetune.core.nbits import bits_of, refuse_for_nbits, to_nbits
from edgetune.core.quantised import BlockGrid, QuantisedMatrix
from edgetune.export.standing_in import StandIn, factor_of

OPERATORS = (
    "torch.ao.quantization.fx._decomposed",
    "executorch.exir.passes._quant_patterns_and_replacements",
    "executorch.kernels.quantized",
)
"""Modules that define `quantized_decomposed` when they are imported: rounding, embeddings, and what a file calls."""
GROUP = 32
"""XNNPACK's groups are multiples of so many weights."""
ROW = "-row"
BRAIN = "-bf16"
GRIDS_OF_KERNELS = (
    "int4-g32, int4-g64, int4-g128, int4-row or int8-row; the 4-bit ones store their scales in bf16"
)


def operators() -> Any:
    """Return the namespace of ExecuTorch's operators on codes."""
    for name in OPERATORS:
        importlib.import_module(name)
    return torch.ops.quantized_decomposed


def refuse_for_xnnpack(grid: BlockGrid, where: str) -> None:
    """Refuse a grid that XNNPACK's kernels do not compute with.

    Args:
        grid: of a matrix, with its block filled in.
        where: the matrix, for errors.

    Raises:
        ConfigError: naming those that they do.
    """
    plain = not grid.levels and len(grid.scale) == 1 and not grid.offset and not grid.signed
    four = bits_of(grid) == 4 and grid.name.endswith(BRAIN) and grid.group % GROUP == 0
    eight = bits_of(grid) == 8 and ROW in grid.name
    if not (plain and (four or eight)):
        raise ConfigError(
            f"XNNPACK has no kernel for the grid {grid.name} in groups of {grid.group}",
            where=where,
            hint=f"{GRIDS_OF_KERNELS}; or --format pte-exact, which takes more",
        )


def refuse_for_unpacking(grid: BlockGrid, where: str) -> None:
    """Refuse a grid that is not unpacked in a graph: as `core.nbits.refuse_for_nbits`.

    Raises:
        ConfigError: naming what is missing.
    """
    refuse_for_nbits(grid, where, "ExecuTorch")


class RoundedLinear(nn.Module):
    """A linear layer as XNNPACK computes it: activations are rounded to 8 bits, a scale and a zero point a token.

        y = s_x (q_x - z_x) W^T + b,   q_x = round(x / s_x) + z_x in [-128, 127],   W = scale code

    Args:
        matrix: on a grid that `refuse_for_xnnpack` lets through.
        bias: float32 [out], if any; the layer's own parameter.

    Source: XNNPACK's qd8-f32-qb4w and qd8-f32-qc8w; the partitioner of ExecuTorch knows this pattern by its operators.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(self, matrix: QuantisedMatrix, bias: nn.Parameter | None) -> None:
        super().__init__()
        scales, self._bits, self._group = matrix.numbers[0].float(), bits_of(matrix.grid), matrix.grid.group
        self._low, self._high = matrix.grid.low, matrix.grid.high
        four = self._bits == 4
        self.register_buffer("codes", matrix.codes.contiguous())
        self.register_buffer("scales", scales if four else scales.reshape(-1))
        kind = torch.int8 if four else torch.int64
        self.register_buffer("zeros", torch.zeros(self.scales.shape, dtype=kind))
        self.bias = bias
        self._ops = operators()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32 [..., in] to [..., out]."""
        ops = self._ops
        s, z = ops.choose_qparams_per_token_asymmetric(x, torch.int8)
        x = ops.quantize_per_token(x, s, z, -128, 127, torch.int8)
        x = ops.dequantize_per_token(x, s, z, -128, 127, torch.int8, torch.float32)
        said = (self.codes, self.scales, self.zeros)
        if self._bits == 4:
            weight = ops.dequantize_per_channel_group(
                *said, self._low, self._high, torch.int8, self._group, torch.float32
            )
        else:
            weight = ops.dequantize_per_channel(*said, 0, self._low, self._high, torch.int8)
        return nn.functional.linear(x, weight, self.bias)


class UnpackedRows(nn.Module):
    """Rows of a matrix, float32, from its codes.

        row[k] = scale[g] (code[k] - zero[g]),   g = k // group

    Args:
        matrix: of 2, 4 or 8 bits, on a grid that `core.nbits` holds.

    Source: `quantized_decomposed::embedding_2bit`, `_4bit` and `_byte` of ExecuTorch's quantised kernels.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    def __init__(self, matrix: QuantisedMatrix) -> None:
        super().__init__()
        bits = bits_of(matrix.grid)
        self._low, self._high = -(1 << bits - 1), (1 << bits - 1) - 1
        self.register_buffer("codes", stored_rows(matrix))
        self.register_buffer("scales", matrix.numbers[0].contiguous())
        self.register_buffer("zeros", matrix.numbers[1].float() if matrix.grid.tied else None)
        self._op: Any = getattr(
            operators(), {2: "embedding_2bit", 4: "embedding_4bit", 8: "embedding_byte"}[bits]
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map int64 [...] to float32 [..., in]."""
        found: torch.Tensor = self._op(
            self.codes, self.scales.float(), self.zeros, self._low, self._high, ids
        )
        return found


class UnpackedLinear(nn.Module):
    """A linear layer in float32 whose weight is unpacked whenever it is used.

    Args:
        rows: of its weight.
        bias: float32 [out], if any; the layer's own parameter.

    Cost: a pass over the codes at every call, and the memory of the float32 weight while it lasts.
    """

    places: torch.Tensor

    def __init__(self, rows: UnpackedRows, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("places", torch.arange(len(rows.codes)))
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32 [..., in] to [..., out]."""
        return nn.functional.linear(x, self.rows(self.places), self.bias)


class UnpackedEmbedding(nn.Module):
    """An embedding whose rows are read from the codes.

    Args:
        rows: one for every token.
        factor: what rows are multiplied by, if anything (Gemma).
    """

    factor: torch.Tensor | None

    def __init__(self, rows: UnpackedRows, factor: torch.Tensor | None) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("factor", factor)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map int64 [...] to float32 [..., width]."""
        rows: torch.Tensor = self.rows(ids)
        return rows if self.factor is None else rows * self.factor


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How the compressed layers of a program compute.

    Args:
        name: of the format.
        rounds: whether activations are rounded to 8 bits, for XNNPACK's kernels on codes.
    """

    name: str
    rounds: bool

    def refuse(self, grid: BlockGrid, where: str) -> None:
        """Refuse a grid that it has no operators for.

        Raises:
            ConfigError: naming what is missing.
        """
        (refuse_for_xnnpack if self.rounds else refuse_for_unpacking)(grid, where)

    def stand_ins(self) -> StandIn:
        """Return what makes a layer's stand-in; unpacked layers that share a matrix share its tensors."""
        unpacked: dict[int, UnpackedRows] = {}

        def make(module: nn.Module, matrix: QuantisedMatrix) -> nn.Module | None:
            linear = isinstance(module, (nn.Linear, Conv1D))
            if linear and self.rounds:
                return RoundedLinear(matrix, _bias_of(module))
            known, factor = factor_of(module) if isinstance(module, nn.Embedding) else (linear, None)
            if not known:
                return None
            rows = unpacked.setdefault(id(matrix), UnpackedRows(matrix))
            return UnpackedLinear(rows, _bias_of(module)) if linear else UnpackedEmbedding(rows, factor)

        return make

    def stored(self, matrix: QuantisedMatrix) -> Iterator[tuple[bytes, ...]]:
        """Yield the bytes that a program may hold of a matrix: codes, scales and zero points, if any.

        A linear layer's first, an embedding's then; the two are one where nothing is rounded.
        """
        numbers = matrix.numbers[0].cpu().contiguous()
        if self.rounds:
            four = bits_of(matrix.grid) == 4
            codes = to_nbits(matrix).codes if four else matrix.codes.cpu()
            yield _bytes(codes), _bytes(numbers if four else numbers.float())
        zeros = (_bytes(matrix.numbers[1].cpu().float()),) if matrix.grid.tied else ()
        yield _bytes(stored_rows(matrix)), _bytes(numbers), *zeros


ROUNDED = Arithmetic("pte", True)
EXACT = Arithmetic("pte-exact", False)


def stored_rows(matrix: QuantisedMatrix) -> torch.Tensor:
    """Return codes as ExecuTorch's embeddings read them, rows of bytes.

    8 bits are int8. Fewer are code + 2^(bits-1): of 4 bits the first in a byte's high half, of 2 in the lowest bits.
    """
    if bits_of(matrix.grid) == 8:
        return matrix.codes.contiguous()
    rows = to_nbits(matrix).codes.reshape(matrix.codes.shape[0], -1)
    return ((rows >> 4) | (rows << 4)) if bits_of(matrix.grid) == 4 else rows


def _bias_of(module: Any) -> nn.Parameter | None:
    bias: nn.Parameter | None = module.bias
    return bias


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()
