"""Modules over a base that they do not hold: products, and rows, of matrices that become floats where they are read."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgetune.core.blank import blank
from edgetune.core.quantised import BLOCK, BaseTensor, CodedTensor, PackedTensor, part_of
from edgetune.core.tuned import Space, StoredReads
from edgetune.tune.parts import perturbed_linear

PART = 1 << 20
"""Weights that are floats at a time: 4 MB."""


class StoredProduct:
    """What computes as a linear or embedding layer does whose matrix is stored elsewhere.

    Called with x [..., inputs], or with ids [...]; gives what the layer gives, of x's type, or float32.

    Args:
        module: for its bias, if it has one.
        stored: its matrix, [outputs, inputs] (of an embedding [tokens, width], of GPT-2's Conv1D [inputs, outputs]):
            blocks, codes, or floats of any type.
        space: what reads blocks.
    Cost: one pass over the matrix as it is stored: blocks and few rows in the cache, else 4 MB of scratch.
    """

    def __init__(self, module: nn.Module, stored: BaseTensor, space: Space) -> None:
        self._module, self._stored, self._reader = module, stored, space.stored
        self._turned, self._like = isinstance(module, Conv1D), blank(stored.shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Compute as the layer does."""
        if isinstance(self._module, nn.Embedding):
            return rows_of(self._stored, x)
        y, bias = self._product(x, turned=self._turned), self._module._parameters.get("bias")
        return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1).to(x.dtype)

    def back(self, e: torch.Tensor) -> torch.Tensor:
        """Return the gradient of what a linear layer was given, float32 [..., inputs], by that of what it gave."""
        return self._product(e, turned=not self._turned).view(*e.shape[:-1], -1)

    def _product(self, x: torch.Tensor, *, turned: bool) -> torch.Tensor:
        """Return `x W^T`, or turned `x W`, float32 [rows, ...]."""
        rows, stored, reader = x.float().reshape(-1, x.shape[-1]).contiguous(), self._stored, self._reader
        if turned:
            return turned_product(rows, stored, reader)
        found = None if isinstance(stored, CodedTensor) else reader.product(rows, stored)
        if found is None:
            found = perturbed_linear(rows, self._like, self._form, reader.alignment, PART)
        return found

    def _form(self, out: torch.Tensor, start: int) -> None:
        self._reader.part(out, part_of(self._stored, start, out.numel()))


def turned_product(x: torch.Tensor, stored: BaseTensor, reader: StoredReads) -> torch.Tensor:
    """Return `x W`.

    Args:
        x: float32 [rows, m].
        stored: W, [m, n].
        reader: what reads blocks.

    Returns:
        Float32 [rows, n].
    Cost: one pass over the matrix, 4 MB of scratch.
    """
    many, width = stored.shape
    least = reader.alignment // math.gcd(reader.alignment, width)
    step = min(many, max(1, PART // (least * width)) * least)
    y, scratch = x.new_zeros(len(x), width), x.new_empty(step, width)
    for first in range(0, many, step):
        some = min(step, many - first)
        part = part_of(stored, first * width, some * width)
        if isinstance(part, torch.Tensor):
            values = part.view(some, width).float()
        else:
            values = scratch[:some]
            reader.part(values, part)
        y.addmm_(x[:, first : first + some], values)
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
