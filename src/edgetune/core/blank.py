"""Tensors of a shape and no values: what stands in a model whose weights are elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def blank(
    shape: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Return NaN of a shape in a single number of memory; whatever computes with it by mistake gives NaN."""
    return torch.full((), float("nan"), dtype=dtype, device=device).expand(tuple(shape))


def blank_like(like: torch.Tensor) -> torch.Tensor:
    """Return NaN of a tensor's shape, type and device in a single number of memory."""
    return blank(like.shape, like.dtype, like.device)


def is_blank(tensor: torch.Tensor) -> bool:
    """Say whether a tensor of several elements holds a single number, as those of `blank` do."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.numel() > 1 and all(size == 1 or not stride for size, stride in steps)
