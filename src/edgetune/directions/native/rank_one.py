"""Directions of rank one of one tensor in the compiled kernel: added to it, or summed."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch

from edgetune.core.errors import ModelError
from edgetune.core.quantised import StoredTensor
from edgetune.core.update import Projected
from edgetune.directions.hadamard import COLUMN_STREAM, ROW_STREAM
from edgetune.directions.kind import Kind
from edgetune.directions.native.jobs import SMALL, TensorDirections, Terms, readable
from edgetune.directions.native.library import best_level, check, installed, library, team
from edgetune.directions.native.structs import Ranked
from edgetune.directions.rademacher import Rademacher
from edgetune.directions.rank_one import RankOneKind, as_matrix
from edgetune.directions.rank_one_pool import RankOnePool
from edgetune.directions.source import BITS

TILE = 64
"""Columns that the kernel works on at a time; a narrower tile is repeated to so many."""
LARGE = 1 << 19
"""Elements from which a sum of float32 goes around the cache, to memory."""


class RankedTerms(Terms):
    """A sum of directions of rank one as the kernel reads it, for any tensor.

    Args:
        kind: rank_one or rank_one_pool.
        update: seeds (or pool indices) and coefficients.
        core: M of a pool where it is known; see `RankOnePool.core`.

    Raises:
        ModelError: if a seed is none of this kind.
    Cost: K log2 K additions for a pool.
    """

    def __init__(self, kind: Kind, update: Projected, core: torch.Tensor | None = None) -> None:
        super().__init__(kind, update)
        self.seed = int(update.keys[0]) if self.count == 1 else 0
        self.tile: torch.Tensor | None = None
        """What a matrix repeats: of a pool its core, of one fresh direction the coefficient."""
        self.line: torch.Tensor | None = None
        """What a vector of a pool repeats."""
        if isinstance(kind, RankOnePool):
            core = kind.core(update) if core is None else core
            self.tile, self.line = _wide(core), _wide(core.reshape(1, -1))
        elif self.count == 1:
            self.tile = torch.full((1, TILE), float(update.coefficients[0]))


@lru_cache(maxsize=4)
def _one(kind: RankOneKind, seed: int, coefficient: float) -> RankedTerms:
    """Return one term; all tensors of a model ask for the same one in turn."""
    core = kind.core_of(seed, coefficient) if isinstance(kind, RankOnePool) else None
    return RankedTerms(kind, Projected.of(seed, coefficient), core)


def _wide(core: torch.Tensor) -> torch.Tensor:
    """Return a tile that is repeated until the kernel can use it."""
    return core.repeat(1, max(1, TILE // core.shape[1])).contiguous()


def ranks(kind: Kind, out: torch.Tensor, base: StoredTensor) -> bool:
    """Say whether a `RankOneTensor` should do this job: tensors that it reads and writes.

    Not of float16, which torch converts faster.
    """
    halves = isinstance(base, torch.Tensor) and torch.float16 in (out.dtype, base.dtype)
    known = isinstance(kind, RankOneKind) and library() is not None and readable(out) and readable(base)
    return known and not halves


class RankOneTensor(TensorDirections):
    """The directions of one tensor, for kinds of rank one.

        out = base + D tile(M) E,   or   ((base + a_1 u_1 v_1^T) + a_2 u_2 v_2^T) + ...

    A sum over a pool is a tile, repeated and signed; so is one fresh direction, whose tile is one number. A vector of a
    pool is one row of such tiles; fresh ones of a vector are independent signs.

    Args:
        kind: rank_one or rank_one_pool.
        key: 32 bytes.
        name: the tensor's name.
    """

    def __init__(self, kind: RankOneKind, key: bytes, name: str) -> None:
        super().__init__(Rademacher(), key, name)
        self._ranked = kind

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
        """Form `out = base + coefficient z(seed)` of a whole tensor; see `TensorDirections.axpy`."""
        term = _one(self._ranked, seed, coefficient)
        self.replay(out, base, term, start=start, level=level, threads=threads)

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
        """Form `out = base + sum_k a_k z_k` of a whole tensor; see `TensorDirections.replay`.

        Cost: one pass over the tensor; a multiplication and an addition a weight for every fresh direction, and column
            signs that every thread draws for itself.
        """
        if not isinstance(terms, RankedTerms) or start:
            raise ModelError("directions of rank one are formed whole", where=self.name)
        matrix = out.dim() > 1
        if not matrix and terms.line is None:
            super().replay(out, base, terms, level=level, threads=threads)
            return
        task = self.job(out, base)
        rows, columns = as_matrix(out.shape) if matrix else (1, task.count)
        tile = terms.tile if matrix else terms.line
        if tile is None:
            task.terms, task.seeds, task.coefficients = terms.count, terms.seeds_at, terms.coefficients_at
        sums = Ranked(task, columns=columns, signed_rows=int(matrix))
        sums.streams = int(task.out != task.base and task.count >= LARGE)
        if isinstance(self._ranked, RankOnePool):
            sums.row_seed, sums.column_seed = ROW_STREAM, COLUMN_STREAM if matrix else ROW_STREAM
        else:
            sums.row_seed = sums.column_seed = terms.seed
            sums.column_block = -(-rows // BITS)
        if tile is not None:
            sums.core, (sums.tall, sums.wide) = tile.data_ptr(), tile.shape
        if threads is None:
            threads = torch.get_num_threads() if task.count >= SMALL else 1
        level = best_level() if level is None else level
        check(installed().edgetune_rank_one(ctypes.byref(sums), level, threads, team()), self.name)
