"""Layers that stand for compressed ones while a model is traced to ONNX: each is one node on the solver's codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgetune.core.nbits import NBits, to_nbits
from edgetune.core.quantised import QuantisedMatrix
from edgetune.export.standing_in import StandIn, factor_of

DOMAIN = "com.microsoft"
CODES, SCALES, ZEROS = "codes", "scales", "zeros"
"""Last parts of the names of what stands for a weight in the graph."""
EXACT = 1
"""`accuracy_level`: activations and sums in float32. With 4 activations are rounded to 8 bits."""


class _Packed(nn.Module):
    """Holds a matrix; scales keep their 16 bits in the file and are widened, exactly, when it is loaded."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None

    def __init__(self, held: NBits) -> None:
        super().__init__()
        self.bits, self.block, self.rows, self.columns = held.bits, held.block, *held.shape
        for name, tensor in ((CODES, held.codes), (SCALES, held.scales), (ZEROS, held.zeros)):
            self.register_buffer(name, tensor)

    def node(self, operator: str, inputs: list[Any], shape: list[Any], **attributes: int) -> torch.Tensor:
        """Return what a node of the graph gives; outside of a trace this is zeros."""
        said: dict[str, Any] = {"bits": self.bits, "block_size": self.block, **attributes}
        found: torch.Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{operator}", inputs, said, dtype=torch.float32, shape=shape, version=1
        )
        return found


class PackedLinear(_Packed):
    """A linear layer as the node `MatMulNBits`.

        y = x W^T + b,   W as in `core.nbits.NBits`

    Args:
        held: the matrix [out, in].
        bias: float32 [out], if any.

    Source: operator `com.microsoft.MatMulNBits`, version 1, of ONNX Runtime.
    """

    bias: torch.Tensor | None

    def __init__(self, held: NBits, bias: torch.Tensor | None) -> None:
        super().__init__(held)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map float32 [..., in] to [..., out]."""
        inputs: list[Any] = [x, self.codes, self.scales.float().reshape(-1)]
        if self.zeros is not None:
            inputs.append(self.zeros.reshape(-1))
        shape = [*x.shape[:-1], self.rows]
        y = self.node("MatMulNBits", inputs, shape, K=self.columns, N=self.rows, accuracy_level=EXACT)
        return y if self.bias is None else y + self.bias


class PackedEmbedding(_Packed):
    """An embedding as the node `GatherBlockQuantized`: rows are read from the codes.

    Args:
        held: the matrix [tokens, width], of 4 or 8 bits.
        factor: what rows are multiplied by, if anything (Gemma).

    Source: operator `com.microsoft.GatherBlockQuantized`, version 1, of ONNX Runtime.
    """

    factor: torch.Tensor | None

    def __init__(self, held: NBits, factor: torch.Tensor | None = None) -> None:
        super().__init__(held)
        self.register_buffer("factor", factor)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map int64 [...] to float32 [..., width]."""
        inputs: list[Any] = [self.codes.reshape(self.rows, -1), ids, self.scales.float()]
        if self.zeros is not None:
            inputs.append(self.zeros)
        shape = [*ids.shape, self.columns]
        rows = self.node("GatherBlockQuantized", inputs, shape, gather_axis=0, quantize_axis=1)
        return rows if self.factor is None else rows * self.factor


def stand_ins() -> StandIn:
    """Return what makes a layer's stand-in; layers that share a matrix share its tensors, which are stored once."""
    held: dict[int, NBits] = {}

    def make(module: nn.Module, matrix: QuantisedMatrix) -> nn.Module | None:
        shared = held.setdefault(id(matrix), to_nbits(matrix))
        if isinstance(module, (nn.Linear, Conv1D)):
            bias: Any = module.bias
            return PackedLinear(shared, bias)
        if not isinstance(module, nn.Embedding) or shared.bits == 2:
            return None
        known, factor = factor_of(module)
        return PackedEmbedding(shared, factor) if known else None

    return make
