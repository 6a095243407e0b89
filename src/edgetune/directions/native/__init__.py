"""The C kernel behind the directions, reached by pointers: no torch ABI, no Python in the inner loops."""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from pathlib import Path

import numpy as np
import torch

from edgetune.core.keys import tensor_id
from edgetune.core.quantised import PackedTensor, StoredTensor
from edgetune.core.update import Projected
from edgetune.directions.gaussian import Gaussian, quantile_table
from edgetune.directions.hadamard import Hadamard
from edgetune.directions.kind import Kind
from edgetune.directions.rademacher import Rademacher

LEVELS = ("baseline", "avx2", "avx512")
"""Instruction sets by number; the kernel picks the best one of the machine."""
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
PACKED = {"Q8_0": 3, "Q4_0": 4}
KIND_NUMBERS: dict[type[Kind], int] = {Rademacher: 0, Gaussian: 1, Hadamard: 2}
ALIGNMENT = 8192
"""Elements the kernel draws at a time; a part of a tensor starts at a multiple of it."""
SMALL = 1 << 16
"""Elements below which a second thread costs more than it saves."""


class Job(ctypes.Structure):
    """Mirror of `job` in kernel.c."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("base", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("out_dtype", ctypes.c_int32),
        ("base_dtype", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("terms", ctypes.c_int32),
        ("key", ctypes.c_uint32 * 8),
        ("tensor", ctypes.c_uint32),
        ("padded", ctypes.c_uint32),
        ("seeds", ctypes.c_void_p),
        ("coefficients", ctypes.c_void_p),
        ("table", ctypes.c_void_p),
        ("start", ctypes.c_int64),
    )


@cache
def library() -> ctypes.CDLL | None:
    """Load the compiled kernel, or return None if it was not built or does not fit this package."""
    for path in sorted(Path(__file__).parent.glob("_kernel*.so")):
        try:
            found = ctypes.CDLL(str(path))
            found.edgetune_job_size.restype = ctypes.c_int64
            if found.edgetune_job_size() == ctypes.sizeof(Job):
                return found
        except (OSError, AttributeError):
            continue  # another platform's build; `edgetune doctor` says which kernel runs
    return None


@cache
def team() -> ctypes.c_void_p | None:
    """Return the way into the OpenMP runtime that torch computes with, or None: the kernel then starts threads itself.

    Idle threads of that runtime spin for a while, and threads of our own would share their cores.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return None
    paths = sorted({line.split()[-1] for line in lines if "libgomp" in line.rsplit("/", 1)[-1]})
    if len(paths) != 1:  # none, or not clear which one torch uses
        return None
    return ctypes.cast(ctypes.CDLL(paths[0]).GOMP_parallel, ctypes.c_void_p)


def best_level() -> int:
    """Return the number of the best instruction set of this machine (see LEVELS); 0 without a kernel."""
    found = library()
    return int(found.edgetune_best()) if found is not None else 0


def serves(kind: Kind, *tensors: StoredTensor) -> bool:
    """Say whether the kernel can do this job: CPU tensors, contiguous, of a type it knows."""
    return library() is not None and type(kind) in KIND_NUMBERS and all(map(_readable, tensors))


def _readable(tensor: StoredTensor) -> bool:
    if isinstance(tensor, PackedTensor):
        return tensor.blocks.device.type == "cpu" and tensor.grid.name in PACKED
    return tensor.device.type == "cpu" and tensor.dtype in DTYPES and tensor.is_contiguous()


def _where(tensor: StoredTensor) -> tuple[int, int]:
    """Return address and type number."""
    if isinstance(tensor, PackedTensor):
        return tensor.blocks.data_ptr(), PACKED[tensor.grid.name]
    return tensor.data_ptr(), DTYPES[tensor.dtype]


def job(
    kind: Kind,
    key: bytes,
    name: str,
    out: torch.Tensor,
    base: StoredTensor,
    update: Projected,
    *,
    replay: bool = False,
    start: int = 0,
) -> tuple[Job, object]:
    """Return the kernel's view of the arguments of `run`, and what must live as long as it is used."""
    seeds, coefficients = np.ascontiguousarray(update.keys), np.ascontiguousarray(update.coefficients)
    padded = kind.padded if isinstance(kind, Hadamard) else 1
    if replay and isinstance(kind, Hadamard):
        coefficients = np.zeros(padded, np.float32)
        np.add.at(coefficients, update.keys, update.coefficients)
    table = quantile_table() if isinstance(kind, Gaussian) else None
    base_at, base_type = _where(base)
    made = Job(
        out.data_ptr(),
        base_at,
        base.numel(),
        DTYPES[out.dtype],
        base_type,
        KIND_NUMBERS[type(kind)],
        len(seeds),
        (ctypes.c_uint32 * 8)(*struct.unpack("<8I", key)),
        tensor_id(name),
        padded,
        seeds.ctypes.data,
        coefficients.ctypes.data,
        table.data_ptr() if table is not None else None,
        start,
    )
    return made, (seeds, coefficients, table)


def run(
    kind: Kind,
    key: bytes,
    name: str,
    out: torch.Tensor,
    base: StoredTensor,
    update: Projected,
    *,
    replay: bool,
    start: int = 0,
    level: int | None = None,
    threads: int | None = None,
) -> None:
    """Form `out = base + sum_k a_k z_k` in float32, rounded once; equal bits to the torch reference.

    Args:
        kind: what a direction looks like.
        key: 32 bytes.
        name: the parameter's name.
        out: contiguous CPU tensor of float32, float16 or bfloat16; may be `base`.
        base: like `out` in shape, or packed.
        update: seeds (or pool indices) and coefficients; one of each for a perturbation.
        replay: sum a whole Hadamard pool by its fast transform.
        start: element of the whole tensor that `out` begins with, a multiple of ALIGNMENT (and, for the replay of a
            Hadamard pool, of its padded size).
        level: instruction set, an index of LEVELS; the best one if not given.
        threads: at most this many; torch's number if not given.

    Raises:
        RuntimeError: if the kernel refuses the arguments or has no memory.
    Cost: one pass over the tensor; a replay of a Hadamard pool of K directions takes log2 K additions a weight.
    """
    kernel = library()
    if kernel is None:
        raise RuntimeError("the compiled kernel is not installed")
    task, kept = job(kind, key, name, out, base, update, replay=replay, start=start)
    if threads is None:
        threads = torch.get_num_threads() if base.numel() >= SMALL else 1
    status = kernel.edgetune_run(
        ctypes.byref(task),
        int(replay and isinstance(kind, Hadamard)),
        best_level() if level is None else level,
        threads,
        team(),
    )
    del kept
    if status:
        raise RuntimeError(f"the compiled kernel refused the job (status {status})")
