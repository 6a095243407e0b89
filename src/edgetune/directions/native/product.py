"""Perturbed matrices that never exist in memory: products with them and their rows, at both points of a step."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from edgetune.core.errors import ModelError
from edgetune.core.quantised import StoredTensor
from edgetune.directions.hadamard import Hadamard
from edgetune.directions.kind import Kind
from edgetune.directions.native.jobs import TensorDirections, Terms, readable, serves, where
from edgetune.directions.native.library import best_level, check, installed, team
from edgetune.directions.native.structs import Reading
from edgetune.directions.rademacher import Rademacher

Step = tuple[int, float]
"""Seed and coefficient."""


def multiplies(kind: Kind, x: torch.Tensor, weight: StoredTensor, *, stored: bool = True) -> bool:
    """Say whether a `Matrix` can do this product.

    Args:
        kind: signs only.
        x: float32, contiguous, on the CPU.
        weight: float32 if it is `stored`, else a base of any type that the kernel reads.
        stored: whether the weights are in memory, or a base and a state.
    """
    plain = isinstance(weight, torch.Tensor) and weight.dtype == torch.float32
    return (
        type(kind) in (Rademacher, Hadamard)
        and x.dtype == torch.float32
        and (plain or not stored)
        and serves(kind, x, weight)
    )


class Matrix(TensorDirections):
    """Readings of one perturbed tensor, for kinds of signs.

        w + scales[p] z(seed),   p = 0 or p = 0, 1

    If a step (s, c) is pending, w <- w + c z(s) first. The perturbed elements have the bits of `axpy`; a product is
    summed over the inputs in order, so the result does not depend on threads.

    Args:
        kind: Rademacher or Hadamard.
        key: 32 bytes.
        name: the tensor's name.
    """

    def __init__(self, kind: Kind, key: bytes, name: str) -> None:
        super().__init__(kind, key, name)
        self._known: tuple[object, ...] = ()
        self._reading = Reading()

    def multiply(
        self,
        x: torch.Tensor,
        weight: StoredTensor,
        seed: int,
        scales: Sequence[float],
        *,
        pending: Step | None = None,
        state: Terms | None = None,
        level: int | None = None,
        threads: int | None = None,
    ) -> torch.Tensor:
        """Multiply by the matrix perturbed in one or two ways, reading it once.

            y[p] = x[p] (W + scales[p] z(seed))^T

        Args:
            x: float32 [points * rows, inputs], contiguous; the first `rows` rows belong to the first point.
            weight: float32 [outputs, inputs], contiguous; written only if a step is pending. With a state the base, of
                any stored type, and never written: W = base + sum_k a_k z_k exists only in the cache.
            seed: the direction.
            scales: one or two signed factors.
            pending: a step that the weights have not taken yet; not together with a state.
            state: what the weights are beyond the base; None if the weights are stored.
            level: instruction set, an index of LEVELS; the best one if not given.
            threads: at most this many; torch's number if not given.

        Returns:
            Float32 [points * rows, outputs].

        Raises:
            ModelError: if the arguments do not fit.
            RuntimeError: if the kernel is not installed.
        Cost: one pass over the weights; scratch for x and a few rows of W (under a megabyte for common layers).
        """
        task = self._read(weight, seed, scales, pending, formed=state is not None)
        rows, left = divmod(x.numel(), task.points * task.depth)
        if left or not rows or x.dtype != torch.float32 or not readable(x):
            raise ModelError(f"rows of {tuple(x.shape)} do not fit the matrix", where=self.name)
        y = x.new_empty(task.points * rows, task.outs)
        task.x, task.y, task.rows = x.data_ptr(), y.data_ptr(), rows
        if state is not None:
            task.state, task.replay = task.direction, int(state.replay)
            task.state.terms = state.count
            task.state.seeds, task.state.coefficients = state.seeds_at, state.coefficients_at
        level = best_level() if level is None else level
        threads = torch.get_num_threads() if threads is None else threads
        check(installed().edgetune_product(ctypes.byref(task), level, threads, team()), self.name)
        return y

    def points(
        self, weight: torch.Tensor, seed: int, scales: Sequence[float], *, level: int | None = None
    ) -> torch.Tensor:
        """Return the whole tensor at every point.

        Args:
            weight: float32, contiguous, of any shape; not written.
            seed: the direction.
            scales: one or two signed factors.
            level: instruction set, an index of LEVELS; the best one if not given.

        Returns:
            Float32 [points, ...].

        Raises:
            ModelError: if the arguments do not fit.
            RuntimeError: if the kernel is not installed.
        Cost: one draw and one pass, on one thread: meant for vectors.
        """
        out = weight.new_empty(len(scales), *weight.shape)
        if weight.numel():
            task = self._read(weight, seed, scales, None)
            task.y = out.data_ptr()
            level = best_level() if level is None else level
            check(installed().edgetune_points(ctypes.byref(task), level), self.name)
        return out

    def gather(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        seed: int,
        scales: Sequence[float],
        *,
        pending: Step | None = None,
        level: int | None = None,
    ) -> torch.Tensor:
        """Return rows of the matrix at every point.

            y[p][i] = (W[rows[i]] + c z(s)) + scales[p] z(seed)

        Args:
            rows: integers [n], each in range.
            weight: float32 [rows, width], contiguous; not written, even if a step is pending.
            seed: the direction.
            scales: one or two signed factors.
            pending: a step that the weights have not taken yet.
            level: instruction set, an index of LEVELS; the best one if not given.

        Returns:
            Float32 [points * n, width].

        Raises:
            ModelError: if a row is out of range, or the arguments do not fit.
            RuntimeError: if the kernel is not installed.
        Cost: one pass over the rows; a draw of 8192 signs for every such part of the matrix in which there are rows.
        """
        if rows.is_floating_point() or not rows.is_cpu:
            raise ModelError(f"row numbers of type {rows.dtype} on {rows.device}", where=self.name)
        rows = rows.reshape(-1).contiguous().long()
        count = len(rows)
        out = weight.new_empty(len(scales) * count, weight.shape[1])
        if not count:
            return out
        order = rows.argsort(stable=True)
        first, last = int(rows[order[0]]), int(rows[order[-1]])
        if first < 0 or last >= len(weight):
            raise ModelError(f"rows {first} to {last} of a matrix of {len(weight)}", where=self.name)
        task = self._read(weight, seed, scales, pending)
        task.y = out.data_ptr()
        ids, places = ctypes.c_void_p(rows.data_ptr()), ctypes.c_void_p(order.data_ptr())
        level = best_level() if level is None else level
        status = installed().edgetune_gather(ctypes.byref(task), ids, places, ctypes.c_int64(count), level)
        check(status, self.name)
        return out

    def _read(
        self,
        weight: StoredTensor,
        seed: int,
        scales: Sequence[float],
        pending: Step | None,
        *,
        formed: bool = False,
    ) -> Reading:
        """Return a reading at these points; what the tensor alone decides is remembered."""
        known = (*where(weight), weight.shape, formed) if readable(weight) else ()
        if not known or known != self._known:
            if not formed and (not isinstance(weight, torch.Tensor) or weight.dtype != torch.float32):
                raise ModelError("weights that are perturbed in the cache must be float32", where=self.name)
            shape = (*weight.shape,) if len(weight.shape) == 2 else (1, weight.numel())
            direction = self.job(None, weight)
            self._reading = Reading(direction=direction, outs=shape[0], depth=shape[1], formed=int(formed))
            self._known = known
        self.kind.refuse(seed)
        if not 1 <= len(scales) <= 2 or (formed and pending):
            raise ModelError(f"a reading at {len(scales)} points", where=self.name)
        task = Reading.from_buffer_copy(self._reading)
        task.seed, task.points = seed, len(scales)
        task.scale, task.other_scale = scales[0], scales[-1]
        if pending:
            self.kind.refuse(pending[0])
            task.folds, task.step_seed, task.step = 1, *pending
        return task
