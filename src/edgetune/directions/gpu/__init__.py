"""The Triton kernels behind the directions, for CUDA tensors; on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import struct
from contextlib import nullcontext
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch

from edgetune.core.keys import tensor_id
from edgetune.core.update import Projected
from edgetune.directions.gaussian import Gaussian, quantile_table
from edgetune.directions.gpu.rank_one import form
from edgetune.directions.hadamard import Hadamard
from edgetune.directions.kind import Kind
from edgetune.directions.native import ALIGNMENT
from edgetune.directions.rademacher import Rademacher
from edgetune.directions.rank_one import RankOneKind
from edgetune.directions.rank_one_pool import RankOnePool

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KIND_NUMBERS: dict[type[Kind], int] = {Rademacher: 0, Gaussian: 1, Hadamard: 2}
PER_WORD = {Rademacher: 32, Gaussian: 2, Hadamard: 32}
"""Elements that one key stream word makes."""
LANES = {Rademacher: 32, Gaussian: 256, Hadamard: 32}
"""Key stream blocks of a tile: 16,384 signs, or 8,192 normal values."""
TILE = 16384
"""Elements that one program transforms; a larger block takes two passes, the first left in scratch."""
SCRATCH = 1 << 22
"""Elements of float32 scratch for blocks beyond TILE: 16 MB, or one block."""
CAPABILITY = 8
"""Least major compute capability that Triton supports."""
LAUNCH = {"enable_fp_fusion": False, "num_warps": 8}
"""Launch options: `c * z + w` rounds twice, as the reference does (a fused multiply-add would round once); warps enough
to hold a tile in registers."""


@cache
def loaded() -> Any:
    """Import the module of the kernels, or return None where Triton is not installed or does not load."""
    try:
        return import_module("edgetune.directions.gpu.kernels")
    except (ImportError, OSError):
        return None


@cache
def _followed() -> Any:
    return import_module("edgetune.directions.gpu.followed")


def interpreted() -> bool:
    """Say whether the kernels run in Triton's interpreter (TRITON_INTERPRET=1), on CPU tensors too."""
    found = loaded()
    return found is not None and bool(found.INTERPRETED)


@cache
def _supported(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= CAPABILITY


def serves(kind: Kind, *tensors: torch.Tensor) -> bool:
    """Say whether the kernels can do this job: contiguous tensors on one served device, of a type they know."""
    device = tensors[0].device
    return (
        (_supported(device) or (device.type == "cpu" and interpreted()))
        and loaded() is not None
        and (type(kind) in KIND_NUMBERS or isinstance(kind, RankOneKind))
        and all(one.device == device and one.dtype in DTYPES and one.is_contiguous() for one in tensors)
    )


def run(
    kind: Kind,
    key: bytes,
    name: str,
    out: torch.Tensor,
    base: torch.Tensor,
    update: Projected,
    *,
    replay: bool,
    start: int = 0,
) -> None:
    """Form `out = base + sum_k a_k z_k` in float32, rounded once; equal bits to the torch reference.

    Args:
        kind: what a direction looks like.
        key: 32 bytes.
        name: the parameter's name.
        out: contiguous tensor of float32, float16 or bfloat16 (see `serves`); may be `base`.
        base: like `out` in shape, on the same device.
        update: seeds (or pool indices) and coefficients; one of each for a perturbation.
        replay: sum all terms; False for a perturbation.
        start: element of the whole tensor that `out` begins with, a multiple of ALIGNMENT; 0 for a replay.

    Raises:
        ValueError: if `start` is not allowed, or a perturbation has not exactly one term.
    Cost: one pass over the tensor; a replay copies its terms to the device first. A Hadamard pool of more than TILE
    directions takes a second pass over scratch.
    """
    if start % ALIGNMENT or start < 0 or (replay and start):
        raise ValueError(f"a part starts at a multiple of {ALIGNMENT} and a replay at 0, not at {start}")
    if not replay and len(update.keys) != 1:
        raise ValueError(f"a perturbation has one term, not {len(update.keys)}")
    if not base.numel():
        return
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
        if isinstance(kind, RankOnePool) or (isinstance(kind, RankOneKind) and base.dim() > 1):
            stream = _key_words(key, out.device), _tensor_word(name)
            options = _roundings(out, base)
            form(kind, base.shape, _plain(out), _plain(base), update, stream, options, replay=replay)
            return
        if isinstance(kind, RankOneKind):
            kind = Rademacher()  # what its vectors are
        if not replay:
            _perturb(kind, key, name, out, base, update, start)
        elif isinstance(kind, Hadamard):
            _transform(kind, key, name, out, base, update)
        else:
            _accumulate(kind, key, name, out, base, update)


def _perturb(
    kind: Kind, key: bytes, name: str, out: torch.Tensor, base: torch.Tensor, update: Projected, start: int
) -> None:
    per_word, lanes = PER_WORD[type(kind)], LANES[type(kind)]
    (low, high), coefficient = _halves(update)[0].tolist(), update.coefficients.view(np.int32)[0].item()
    grid = (-(-base.numel() // (lanes * 16 * per_word)),)
    loaded().perturb[grid](
        _plain(out), _plain(base), base.numel(), start, _key_words(key, out.device), _tensor_word(name),
        low, high, coefficient, _table(kind, out.device),
        KIND=KIND_NUMBERS[type(kind)], PADDED=kind.padded if isinstance(kind, Hadamard) else 1,
        PER_WORD=per_word, LANES=lanes, **_roundings(out, base),
    )  # fmt: skip


def _accumulate(
    kind: Kind, key: bytes, name: str, out: torch.Tensor, base: torch.Tensor, update: Projected
) -> None:
    per_word, lanes = PER_WORD[type(kind)], LANES[type(kind)]
    grid = (-(-base.numel() // (lanes * 16 * per_word)),)
    loaded().accumulate[grid](
        _plain(out), _plain(base), base.numel(), _key_words(key, out.device), _tensor_word(name),
        *_terms(update, out.device), len(update.keys), _table(kind, out.device),
        KIND=KIND_NUMBERS[type(kind)], PER_WORD=per_word, LANES=lanes, **_roundings(out, base),
    )  # fmt: skip


def follow(
    kind: Kind,
    key: bytes,
    name: str,
    weight: torch.Tensor,
    remainder: torch.Tensor,
    update: Projected,
    base: torch.Tensor | None = None,
) -> None:
    """Add directions in their order to a 16-bit tensor and its remainders; equal bits to `BoundSpace.follow`.

    Args:
        kind: of independent directions.
        key: 32 bytes.
        name: the parameter's name.
        weight: contiguous float16 or bfloat16 (see `serves`); written.
        remainder: int16, like `weight` in shape; written.
        update: seeds and coefficients.
        base: start from it instead of from weight and remainder; as `serves` it.

    Raises:
        ValueError: if directions come from a transform's pool.
    Cost: one pass, no scratch.
    """
    if isinstance(kind, Hadamard):
        raise ValueError("the sum of a pool is formed anew, not followed")
    if not weight.numel():
        return
    # A quarter of a tile: each element is a weight, a remainder and a sum in registers.
    per_word, lanes = PER_WORD[type(kind)], LANES[type(kind)] // 4
    start = weight if base is None else base
    with torch.cuda.device(weight.device) if weight.is_cuda else nullcontext():
        _followed().follow[(-(-weight.numel() // (lanes * 16 * per_word)),)](
            _plain(weight), remainder, _plain(start), weight.numel(), _key_words(key, weight.device),
            _tensor_word(name), *_terms(update, weight.device), len(update.keys), _table(kind, weight.device),
            KIND=KIND_NUMBERS[type(kind)], PER_WORD=per_word, LANES=lanes, FROM_BASE=base is not None,
            **_roundings(weight, start),
        )  # fmt: skip


def _terms(update: Projected, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return seeds int32 [terms, 2] and the bits of coefficients int32 [terms] on the device."""
    seeds, bits = _halves(update), update.coefficients.view(np.int32).copy()
    return torch.from_numpy(seeds).to(device), torch.from_numpy(bits).to(device)


def _transform(
    kind: Hadamard, key: bytes, name: str, out: torch.Tensor, base: torch.Tensor, update: Projected
) -> None:
    padded, count = kind.padded, base.numel()
    summed = np.zeros(padded, np.float32)
    np.add.at(summed, update.keys, update.coefficients)
    coefficients = torch.from_numpy(summed).to(out.device)
    stream = (_key_words(key, out.device), _tensor_word(name))
    if padded <= TILE:
        loaded().transform[(-(-count // TILE),)](
            _plain(out), _plain(base), count, *stream, coefficients,
            PADDED=padded, LEVELS=padded.bit_length() - 1, LANES=TILE // 512, **_roundings(out, base),
        )  # fmt: skip
        return
    rows, step = padded // TILE, max(padded, SCRATCH)
    scratch = torch.empty(min(step, -(-count // padded) * padded), dtype=torch.float32, device=out.device)
    flat_out, flat_base = _plain(out).view(-1), _plain(base).view(-1)
    for start in range(0, count, step):
        part = min(step, count - start)
        blocks = -(-part // padded)
        loaded().transform_rows[(blocks * rows,)](
            scratch, start, *stream, coefficients,
            PADDED=padded, LEVELS=TILE.bit_length() - 1, LANES=TILE // 512, **LAUNCH,
        )  # fmt: skip
        loaded().transform_columns[(blocks * (TILE // 512),)](
            flat_out[start:], flat_base[start:], part, start, scratch, *stream,
            ROW=TILE, ROWS=rows, LEVELS=rows.bit_length() - 1, **_roundings(out, base),
        )  # fmt: skip


def _halves(update: Projected) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return the seeds as int32 [terms, 2], low halves first, whatever the machine's byte order."""
    return np.ascontiguousarray(update.keys, "<i8").view("<i4").reshape(-1, 2).astype(np.int32)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 as int16: the kernels convert it by integers."""
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def _roundings(out: torch.Tensor, base: torch.Tensor) -> dict[str, Any]:
    bfloat = torch.bfloat16
    return {"OUT_BFLOAT": out.dtype == bfloat, "BASE_BFLOAT": base.dtype == bfloat, **LAUNCH}


def _tensor_word(name: str) -> int:
    """Return the tensor id as a signed number, so that a kernel always gets the same type."""
    return int(np.array(tensor_id(name), np.uint32).view(np.int32))


@lru_cache(maxsize=4)
def _key_words(key: bytes, device: torch.device) -> torch.Tensor:
    """Return int32 [8]; remembered because a copy to the device waits for all work before it."""
    return torch.tensor(struct.unpack("<8i", key), dtype=torch.int32, device=device)


@lru_cache(maxsize=4)
def _on_device(device: torch.device) -> torch.Tensor:
    return quantile_table().to(device)


def _table(kind: Kind, device: torch.device) -> torch.Tensor | None:
    return _on_device(device) if isinstance(kind, Gaussian) else None
