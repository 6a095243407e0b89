"""Modules over a packed base: products, and rows, of matrices that are dequantised where they are read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from edgetune.core.quantised import BLOCK, PackedTensor
from edgetune.core.tuned import Space
from edgetune.tune.parts import perturbed_linear

PART = 1 << 20
"""Weights that are dequantised at a time: 4 MB."""


def shaped(*shape: int) -> torch.Tensor:
    """Return NaN of a shape in a single number of memory."""
    return torch.full((), float("nan")).expand(shape)


def packed_product(
    module: nn.Module, stored: PackedTensor, space: Space
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what computes as a linear or embedding layer does whose matrix is packed.

    Args:
        module: for its bias, if it has one.
        stored: its matrix, [outputs, inputs] (of an embedding [tokens, width]).
        space: what reads blocks.

    Returns:
        Called with x [..., inputs], or with ids [...]; gives what the layer gives, of x's type, or float32.
    Cost: one pass over the blocks: of few rows in the cache, else 4 MB of scratch.
    """
    if isinstance(module, nn.Embedding):
        return lambda ids: rows_of(stored, ids)
    like, bias, reader = shaped(*stored.shape), module._parameters.get("bias"), space.stored

    def form(out: torch.Tensor, start: int) -> None:
        reader.part(out, stored.part(start, out.numel()))

    def multiply(x: torch.Tensor) -> torch.Tensor:
        rows = x.float().reshape(-1, stored.shape[1]).contiguous()
        y = reader.product(rows, stored)
        if y is None:
            y = perturbed_linear(rows, like, form, reader.alignment, PART)
        return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], -1).to(x.dtype)

    return multiply


def rows_of(stored: PackedTensor, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of a packed matrix.

    Args:
        stored: [tokens, width].
        ids: int64 [...], each in range.

    Returns:
        Float32 [..., width].
    Cost: the rows that are asked for.
    """
    width = stored.shape[1]
    blocks = stored.blocks.view(stored.shape[0], width // BLOCK * stored.grid.block_bytes)
    found = PackedTensor(stored.grid, blocks[ids.reshape(-1)].reshape(-1), (ids.numel(), width))
    return found.dequantise().view(*ids.shape, width)
