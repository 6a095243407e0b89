"""Buffers that old checkpoints store beside the weights, and that models compute for themselves today."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open


def without_stale_buffers(names: Iterable[str], files: Sequence[Path]) -> list[str]:
    """Return the names that are not those of stale buffers: tensors that nothing was learnt in, told by their values.

    A causal mask (`...bias`, [1, 1, n, n], zeros and ones, nothing above the diagonal), the number that masks
    (`...masked_bias`, one large negative number), positions (`position_ids`, 0 ... n - 1) and rotary tables
    (`rotary_emb.inv_freq`, `cos_cached`, `sin_cached`). transformers ignores them as it ignores every tensor it has no
    place for; any other tensor without a place is a sign that the configuration is not that of the weights.

    Args:
        names: tensors that the model has no place for.
        files: where they are stored.
    Cost: reads the tensors that have such names.
    """
    left = list(names)
    if not left:
        return []
    stale: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as stored:
            for name in set(left) & set(stored.keys()):
                if _named_so(name) and _is_stale(name, stored.get_tensor(name)):
                    stale.add(name)
    return [name for name in left if name not in stale]


_ROTARY = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


def _named_so(name: str) -> bool:
    return name.endswith((".bias", ".masked_bias", "position_ids", *_ROTARY))


def _is_stale(name: str, tensor: torch.Tensor) -> bool:
    if name.endswith(_ROTARY):
        return bool(tensor.isfinite().all())
    if name.endswith("position_ids"):
        return torch.equal(tensor.flatten().long(), torch.arange(tensor.numel()))
    if name.endswith("masked_bias"):
        return tensor.numel() == 1 and float(tensor) <= -1e4
    square = tensor.ndim == 4 and tensor.shape[:2] == (1, 1) and tensor.shape[2] == tensor.shape[3]
    values = tensor.float()
    return square and bool((values == values.tril()).all() and ((values == 0) | (values == 1)).all())
