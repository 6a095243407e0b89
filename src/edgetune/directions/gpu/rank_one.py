"""The launcher of the Triton kernels of directions of rank one."""

from __future__ import annotations

from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch

from edgetune.core.update import Projected
from edgetune.directions.hadamard import COLUMN_STREAM, ROW_STREAM
from edgetune.directions.rank_one import RankOneKind, as_matrix
from edgetune.directions.rank_one_pool import RankOnePool
from edgetune.directions.source import BITS

LANES, WORDS = 4, 16
"""Key stream blocks that a program draws, and words of a block."""
SHAPE = {"ROWS": 16, "COLUMNS": 256}
"""Of the block that a program forms."""


@cache
def _tiled() -> Any:
    return import_module("edgetune.directions.gpu.tiled")


def form(
    kind: RankOneKind,
    shape: tuple[int, ...],
    out: torch.Tensor,
    base: torch.Tensor,
    update: Projected,
    stream: tuple[torch.Tensor, int],
    options: dict[str, Any],
    *,
    replay: bool,
) -> None:
    """Form `out = base + sum_k a_k z_k`; equal bits to the torch reference.

    Args:
        kind: rank_one for a matrix, or rank_one_pool.
        shape: of the tensor.
        out: contiguous, as the kernels write it; may be `base`.
        base: like `out`.
        update: seeds (or pool indices) and coefficients.
        stream: the key's words on the device, and the tensor's.
        options: how the kernels round, and are launched.
        replay: sum all terms; False for a perturbation.
    Cost: one pass over the tensor; the signs of rows and columns, a bit each, and of a pool P Q numbers on the device.
    """
    matrix, device = len(shape) > 1, out.device
    rows, columns = as_matrix(shape) if matrix else (1, out.numel())
    grid = (-(-rows // SHAPE["ROWS"]), -(-columns // SHAPE["COLUMNS"]))
    if isinstance(kind, RankOnePool):
        core = _core(kind, update.keys.tobytes(), update.coefficients.tobytes(), replay, device)
        core = core if matrix else core.view(1, -1)
        words = _draw([ROW_STREAM, COLUMN_STREAM], -(-max(rows, columns) // BITS), stream, device)
        _tiled().add_core[grid](
            out, base, rows, columns, words, words.shape[1], core,
            TALL=core.shape[0], ACROSS=core.shape[1], MATRIX=matrix, **SHAPE, **options,
        )  # fmt: skip
        return
    above = -(-rows // BITS)
    words = _draw(update.keys.tolist(), above - (-columns // BITS), stream, device)
    bits = torch.from_numpy(update.coefficients.view(np.int32).copy()).to(device)
    _tiled().add_terms[grid](
        out, base, rows, columns, words, words.shape[1], above, bits, len(bits), **SHAPE, **options
    )  # fmt: skip


def _draw(
    seeds: list[int], blocks: int, stream: tuple[torch.Tensor, int], device: torch.device
) -> torch.Tensor:
    """Return the first blocks of streams: int32 [seeds, words]."""
    groups = -(-blocks // LANES)
    words = torch.empty(len(seeds), groups * LANES * WORDS, dtype=torch.int32, device=device)
    halves = np.array(seeds, "<u8").view("<i4").reshape(-1, 2).astype(np.int32)
    if len(seeds):
        _tiled().draw[(len(seeds), groups)](
            words, words.shape[1], *stream, torch.from_numpy(halves).to(device), LANES=LANES
        )
    return words


@lru_cache(maxsize=2)
def _core(
    kind: RankOnePool, keys: bytes, coefficients: bytes, replay: bool, device: torch.device
) -> torch.Tensor:
    """Return a pool's core on the device; all tensors of a model ask for the same one in turn."""
    update = Projected(np.frombuffer(keys, np.int64), np.frombuffer(coefficients, np.float32))
    one = None if replay else kind.core_of(int(update.keys[0]), float(update.coefficients[0]))
    return (kind.core(update) if one is None else one).to(device)
