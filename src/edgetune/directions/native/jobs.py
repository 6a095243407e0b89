"""Directions of one tensor in the compiled kernel: added to it, or summed."""

from __future__ import annotations

import ctypes
import struct

import numpy as np
import torch

from edgetune.core.errors import ModelError
from edgetune.core.keys import KEY_BYTES, tensor_id
from edgetune.core.quantised import PackedTensor, StoredTensor
from edgetune.core.update import Projected
from edgetune.directions.gaussian import Gaussian, quantile_table
from edgetune.directions.hadamard import Hadamard
from edgetune.directions.kind import Kind
from edgetune.directions.native.library import best_level, check, installed, library, team
from edgetune.directions.native.structs import Job
from edgetune.directions.rademacher import Rademacher

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
PACKED = {"Q8_0": 3, "Q4_0": 4, "Q4_1": 5}
KIND_NUMBERS: dict[type[Kind], int] = {Rademacher: 0, Gaussian: 1, Hadamard: 2}
ALIGNMENT = 8192
"""Elements the kernel draws at a time; a part of a tensor starts at a multiple of it."""
SMALL = 1 << 16
"""Elements below which a second thread costs more than it saves."""


def serves(kind: Kind, *tensors: StoredTensor) -> bool:
    """Say whether the kernel can do this job: CPU tensors, contiguous, of a type it knows."""
    return library() is not None and type(kind) in KIND_NUMBERS and all(map(readable, tensors))


def readable(tensor: StoredTensor) -> bool:
    """Say whether the kernel can read this tensor."""
    if isinstance(tensor, PackedTensor):
        return tensor.blocks.is_cpu and tensor.grid.name in PACKED
    return tensor.is_cpu and tensor.dtype in DTYPES and tensor.is_contiguous()


def where(tensor: StoredTensor) -> tuple[int, int]:
    """Return address and type number of a tensor that is `readable`."""
    if isinstance(tensor, PackedTensor):
        return tensor.blocks.data_ptr(), PACKED[tensor.grid.name]
    return tensor.data_ptr(), DTYPES[tensor.dtype]


class Terms:
    """A sum of directions as the kernel reads it, for any tensor.

    Args:
        kind: what a direction looks like.
        update: seeds (or pool indices) and coefficients.

    Raises:
        ModelError: if a seed is none of this kind.
    """

    def __init__(self, kind: Kind, update: Projected) -> None:
        kind.refuse(update.keys)
        self.count = len(update.keys)
        self.replay = isinstance(kind, Hadamard) and self.count > 0
        self._keys = np.ascontiguousarray(update.keys, np.int64)
        self._coefficients = np.ascontiguousarray(update.coefficients, np.float32)
        if isinstance(kind, Hadamard) and self.replay:
            self._coefficients = np.zeros(kind.padded, np.float32)
            np.add.at(self._coefficients, update.keys, update.coefficients)
        self.seeds_at, self.coefficients_at = self._keys.ctypes.data, self._coefficients.ctypes.data


class TensorDirections:
    """The directions of one tensor: what never changes of a job is worked out once.

    Args:
        kind: what a direction looks like.
        key: 32 bytes.
        name: the tensor's name.

    Raises:
        ModelError: if the key has another length.
    """

    def __init__(self, kind: Kind, key: bytes, name: str) -> None:
        if len(key) != KEY_BYTES:
            raise ModelError(f"a direction key has {KEY_BYTES} bytes, not {len(key)}")
        self.kind, self.name = kind, name
        self._table = quantile_table() if isinstance(kind, Gaussian) else None
        self._stem = Job(
            kind=KIND_NUMBERS[type(kind)],
            key=struct.unpack("<8I", key),
            tensor=tensor_id(name),
            padded=kind.padded if isinstance(kind, Hadamard) else 1,
            table=self._table.data_ptr() if self._table is not None else None,
        )

    def job(
        self, out: torch.Tensor | None, base: StoredTensor, start: int = 0, *, unit: int = ALIGNMENT
    ) -> Job:
        """Return a job without terms, as the kernel reads it; both tensors must outlive it.

        Args:
            out: contiguous; None if the job only reads.
            base: as many elements as `out`.
            start: element of the whole tensor that they begin with.
            unit: what `start` is a multiple of.

        Raises:
            ModelError: if the kernel cannot read or write these tensors, or they do not fit each other.
        """
        fits = readable(base) and start >= 0 and start % unit == 0
        if out is not None:
            fits = fits and readable(out) and out.numel() == base.numel()
        if not fits:
            raise ModelError("the compiled kernel cannot compute this part of the tensor", where=self.name)
        task = Job.from_buffer_copy(self._stem)
        task.base, task.base_dtype = where(base)
        task.count, task.start = base.numel(), start
        if out is not None:
            task.out, task.out_dtype = where(out)
        return task

    def axpy(
        self,
        out: torch.Tensor,
        base: StoredTensor,
        coefficient: float,
        seed: int,
        *,
        start: int = 0,
        level: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Form `out = base + coefficient z(seed)` in float32, rounded once; equal bits to the torch reference.

        Args:
            out: contiguous CPU tensor of float32, float16 or bfloat16; may be `base`.
            base: like `out` in shape, or packed.
            coefficient: rounded to float32 first.
            seed: the direction.
            start: element of the whole tensor that `out` begins with, a multiple of ALIGNMENT.
            level: instruction set, an index of LEVELS; the best one if not given.
            threads: at most this many; torch's number if not given.

        Raises:
            ModelError: if the arguments do not fit.
            RuntimeError: if the kernel is not installed.
        Cost: one pass over the tensor.
        """
        self.kind.refuse(seed)
        task, key, value = self.job(out, base, start), ctypes.c_uint64(seed), ctypes.c_float(coefficient)
        task.terms, task.seeds, task.coefficients = 1, ctypes.addressof(key), ctypes.addressof(value)
        self._run(task, False, level, threads)

    def replay(
        self,
        out: torch.Tensor,
        base: StoredTensor,
        terms: Terms,
        *,
        start: int = 0,
        level: int | None = None,
        threads: int | None = None,
    ) -> None:
        """Form `out = base + sum_k a_k z_k` in float32, rounded once; equal bits to the torch reference.

        Args:
            out: contiguous CPU tensor of float32, float16 or bfloat16; may be `base`.
            base: like `out` in shape, or packed.
            terms: the sum.
            start: element of the whole tensor that `out` begins with, a multiple of ALIGNMENT and of the padded size of
                a Hadamard pool.
            level: instruction set, an index of LEVELS; the best one if not given.
            threads: at most this many; torch's number if not given.

        Raises:
            ModelError: if the arguments do not fit.
            RuntimeError: if the kernel is not installed.
        Cost: one pass over the tensor; a Hadamard pool of K directions takes log2 K additions a weight.
        """
        task = self.job(out, base, start, unit=max(ALIGNMENT, self._stem.padded if terms.replay else 1))
        task.terms, task.seeds, task.coefficients = terms.count, terms.seeds_at, terms.coefficients_at
        self._run(task, terms.replay, level, threads)

    def _run(self, task: Job, replay: bool, level: int | None, threads: int | None) -> None:
        if threads is None:
            threads = torch.get_num_threads() if task.count >= SMALL else 1
        level = best_level() if level is None else level
        status = installed().edgetune_run(ctypes.byref(task), int(replay), level, threads, team())
        check(status, self.name)
