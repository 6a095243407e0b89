"""Products with perturbed matrices: both points of a step in one pass over the weights."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import torch

from edgetune.core.quantised import PackedTensor, StoredTensor
from edgetune.core.update import Projected
from edgetune.directions.hadamard import Hadamard
from edgetune.directions.kind import Kind
from edgetune.directions.native import Job, best_level, job, library, serves, team
from edgetune.directions.rademacher import Rademacher


class _Product(ctypes.Structure):
    """Mirror of `product` in product_job.h."""

    _fields_ = (
        ("direction", Job),
        ("state", Job),
        ("fold", Job),
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("outs", ctypes.c_int64),
        ("depth", ctypes.c_int64),
        ("scales", ctypes.c_float * 2),
        ("points", ctypes.c_int32),
        ("formed", ctypes.c_int32),
        ("replay", ctypes.c_int32),
        ("folds", ctypes.c_int32),
        ("padded", ctypes.c_int64),
        ("unit", ctypes.c_int64),
        ("across", ctypes.c_void_p),
    )


@cache
def _kernel() -> ctypes.CDLL | None:
    """Return the compiled kernel if it has products of this layout."""
    found = library()
    if found is None or not hasattr(found, "edgetune_gather"):
        return None
    found.edgetune_product_size.restype = ctypes.c_int64
    found.edgetune_product_scratch.restype = ctypes.c_int64
    return found if found.edgetune_product_size() == ctypes.sizeof(_Product) else None


def multiplies(kind: Kind, x: torch.Tensor, weight: StoredTensor, *, stored: bool = True) -> bool:
    """Say whether `multiply` can do this job.

    Args:
        kind: signs only.
        x: float32, contiguous, on the CPU.
        weight: float32 if it is `stored`, else a base of any type that the kernel reads.
        stored: whether the weights are in memory, or a base and a state.
    """
    plain = isinstance(weight, torch.Tensor) and weight.dtype == torch.float32
    return (
        _kernel() is not None
        and isinstance(kind, Rademacher | Hadamard)
        and x.dtype == torch.float32
        and (plain or not stored)
        and serves(kind, x, weight)
    )


def multiply(
    kind: Kind,
    key: bytes,
    name: str,
    x: torch.Tensor,
    weight: StoredTensor,
    seed: int,
    scales: Sequence[float],
    *,
    pending: tuple[int, float] | None = None,
    state: Projected | None = None,
    level: int | None = None,
    threads: int | None = None,
) -> torch.Tensor:
    """Multiply by a matrix perturbed in one or two ways, reading it once.

        y[p] = x[p] (W + scales[p] z(seed))^T

    If a step (s, c) is pending, W <- W + c z(s) first. If a state is given, W = base + sum_k a_k z_k exists only in the
    cache.

    The perturbed elements have the bits of `axpy`; a product is summed over the inputs in order, so the result does not
    depend on threads.

    Args:
        kind: Rademacher or Hadamard.
        key: 32 bytes.
        name: the parameter's name.
        x: float32 [points * rows, inputs], contiguous; the first `rows` rows belong to the first point.
        weight: float32 [outputs, inputs], contiguous; written only if a step is pending. With a state the base, of
            any stored type, and never written.
        seed: the direction.
        scales: one or two signed factors.
        pending: seed and coefficient of a step that the weights have not taken yet; not together with a state.
        state: what the weights are beyond the base; None if the weights are stored.
        level: instruction set, an index of LEVELS; the best one if not given.
        threads: at most this many; torch's number if not given.

    Returns:
        Float32 [points * rows, outputs].

    Raises:
        RuntimeError: if the kernel refuses the arguments.
    Cost: one pass over the weights; scratch for x and a few rows of W (under a megabyte for common layers).
    """
    kernel = _kernel()
    if kernel is None:
        raise RuntimeError("the compiled kernel is not installed")
    outputs, inputs = weight.shape
    points = len(scales)
    rows = x.numel() // (inputs * points)
    y = x.new_empty(points * rows, outputs)
    formed, replays = state is not None, bool(state is not None and len(state.keys))
    out = y if isinstance(weight, PackedTensor) else weight  # not written unless a step is pending
    direction, *kept = job(kind, key, name, out, weight, Projected.of(seed, 1.0))
    fold, *also = job(kind, key, name, out, weight, Projected.of(*(pending or (seed, 0.0))))
    base, *too = job(kind, key, name, y, weight, state or Projected.none(), replay=replays)
    task = _Product(
        direction, base, fold, x.data_ptr(), y.data_ptr(), rows, outputs, inputs, (ctypes.c_float * 2)(*scales),
        points, int(formed), int(replays and isinstance(kind, Hadamard)), int(pending is not None),
    )  # fmt: skip
    threads = torch.get_num_threads() if threads is None else threads
    level = best_level() if level is None else level
    scratch = torch.empty(kernel.edgetune_product_scratch(ctypes.byref(task), level, threads))
    status = kernel.edgetune_product(
        ctypes.byref(task),
        ctypes.c_void_p(scratch.data_ptr()),
        level,
        threads,
        team(),
    )
    del kept, also, too
    if status:
        raise RuntimeError(f"the compiled kernel refused the product (status {status})")
    return y


def gather(
    kind: Kind,
    key: bytes,
    name: str,
    rows: torch.Tensor,
    weight: torch.Tensor,
    steps: Sequence[tuple[int, float]],
    *,
    level: int | None = None,
) -> torch.Tensor:
    """Return rows of a perturbed matrix, which is not formed.

        y[r] = (W[rows[r]] + c_1 z(s_1)) + c_2 z(s_2) ...

    Args:
        kind: Rademacher or Hadamard.
        key: 32 bytes.
        name: the parameter's name.
        rows: int64 [n], each in range.
        weight: float32 [rows, width], contiguous; not written.
        steps: pairs (seed, coefficient), added in this order with the bits of `axpy`.
        level: instruction set, an index of LEVELS; the best one if not given.

    Returns:
        Float32 [n, width].

    Raises:
        IndexError: if a row is out of range.
        RuntimeError: if the kernel refuses the arguments.
    Cost: one to two draws of 8192 signs a row and step.
    """
    kernel = _kernel()
    if kernel is None:
        raise RuntimeError("the compiled kernel is not installed")
    if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(weight):
        raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of a matrix of {len(weight)}")
    rows = rows.contiguous()
    out = weight.new_empty(len(rows), weight.shape[1])
    update = Projected.none()
    for seed, coefficient in steps:
        update = update + Projected.of(seed, coefficient)
    task, *kept = job(kind, key, name, out, weight, update)
    status = kernel.edgetune_gather(
        ctypes.byref(task),
        ctypes.c_void_p(rows.data_ptr()),
        ctypes.c_int64(len(rows)),
        ctypes.c_int64(weight.shape[1]),
        best_level() if level is None else level,
    )
    del kept
    if status:
        raise RuntimeError(f"the compiled kernel refused the rows (status {status})")
    return out
