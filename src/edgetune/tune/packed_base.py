"""Modules over a base that they do not hold: products, and rows, of matrices that become floats where they are read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgetune.core.blank import blank
from edgetune.core.quantised import BLOCK, BaseTensor, CodedTensor, PackedTensor, part_of, values_of
from edgetune.core.tuned import Space
from edgetune.tune.parts import perturbed_linear

PART = 1 << 20
"""Weights that are floats at a time: 4 MB."""


def stored_product(
    module: nn.Module, stored: BaseTensor, space: Space
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what computes as a linear or embedding layer does whose matrix is stored elsewhere.

    Args:
        module: for its bias, if it has one.
        stored: its matrix, [outputs, inputs] (of an embedding [tokens, width], of GPT-2's Conv1D [inputs, outputs]):
            blocks, codes, or floats of any type.
        space: what reads blocks.

    Returns:
        Called with x [..., inputs], or with ids [...]; gives what the layer gives, of x's type, or float32.
    Cost: one pass over the matrix as it is stored: blocks and few rows in the cache, else 4 MB of scratch.
    """
    if isinstance(module, nn.Embedding):
        return lambda ids: rows_of(stored, ids)
    like, bias, reader = blank(stored.shape), module._parameters.get("bias"), space.stored

    def form(out: torch.Tensor, start: int) -> None:
        reader.part(out, part_of(stored, start, out.numel()))

    def multiply(x: torch.Tensor) -> torch.Tensor:
        rows = x.float().reshape(-1, x.shape[-1]).contiguous()
        if isinstance(module, Conv1D):
            y = turned_product(rows, stored)
        else:
            found = None if isinstance(stored, CodedTensor) else reader.product(rows, stored)
            y = perturbed_linear(rows, like, form, reader.alignment, PART) if found is None else found
        return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1).to(x.dtype)

    return multiply


def turned_product(x: torch.Tensor, stored: BaseTensor) -> torch.Tensor:
    """Return `x W` of a matrix that is stored as [inputs, outputs].

    Args:
        x: float32 [rows, inputs].
        stored: W.

    Returns:
        Float32 [rows, outputs].
    Cost: one pass over the matrix, 4 MB of scratch.
    """
    inputs, outputs = stored.shape
    y, step = x.new_zeros(len(x), outputs), max(1, PART // outputs)
    for first in range(0, inputs, step):
        some = min(step, inputs - first)
        part = values_of(stored, first * outputs, some * outputs).view(some, outputs)
        y.addmm_(x[:, first : first + some], part.float())
    return y


def rows_of(stored: BaseTensor, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of a matrix as it is stored.

    Args:
        stored: [tokens, width].
        ids: int64 [...], each in range.

    Returns:
        Float32 [..., width].
    Cost: the rows that are asked for.
    """
    width, flat = stored.shape[1], ids.reshape(-1)
    if isinstance(stored, PackedTensor):
        blocks = stored.blocks.view(stored.shape[0], width // BLOCK * stored.grid.block_bytes)
        found = PackedTensor(stored.grid, blocks[flat].reshape(-1), (ids.numel(), width)).dequantise()
    else:
        found = stored.read(flat) if isinstance(stored, CodedTensor) else stored[flat].float()
    return found.view(*ids.shape, width)
