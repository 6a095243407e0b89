"""A pool of directions of rank one: orthogonal, summed by one small transform, and exactly a low-rank adapter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch.nn import functional

from edgetune.core.errors import ConfigError
from edgetune.core.update import Projected
from edgetune.directions.hadamard import COLUMN_STREAM, ROW_STREAM, hadamard_column, walsh
from edgetune.directions.kind import CHUNK, Summed
from edgetune.directions.rank_one import RankOneKind, as_matrix
from edgetune.directions.source import Source


@dataclass(frozen=True, slots=True)
class RankOnePool(RankOneKind, Summed):
    """A pool of K = P Q directions of rank one, any two orthogonal on whole tiles of P rows and Q columns.

        z_k[i, j] = D_i H_P[i mod P, a] H_Q[j mod Q, b] E_j,   k = a Q + b,   H[i, k] = (-1)^popcount(i & k)
        sum_k c_k z_k = D tile(H_P C H_Q) E,   C[a, b] = c_(a Q + b)

    D and E are the Rademacher streams of seed 0 and seed 1. K is rounded up to a power of two, P to the greater root:
    P = Q or P = 2 Q. A vector takes `D_j H_P[(j div Q) mod P, a] H_Q[j mod Q, b]`. The sum over a pool has rank Q.

    Args:
        size: K, at least 1, at most 2^20.

    Raises:
        ConfigError: if the size is out of range.
    Cost: a replay of all K directions takes K log2 K additions for the model, and one pass over the weights.
    """

    name: ClassVar[str] = "rank_one_pool"
    sized: ClassVar[bool] = True
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 1 << 20:
            raise ConfigError(f"a pool of rank one needs 1 to 1,048,576 directions, not {self.size}")

    @property
    def limit(self) -> int:
        """K."""
        return self.size

    @property
    def tile(self) -> tuple[int, int]:
        """P and Q."""
        levels = (self.size - 1).bit_length()
        return 1 << (levels + 1) // 2, 1 << levels // 2

    def row_signs(self, source: Source, name: str, rows: int, device: torch.device) -> torch.Tensor:
        """Return D, float32 [rows] of +1 and -1."""
        return source.signs(name, ROW_STREAM, 0, rows, device).float()

    def column_signs(self, source: Source, name: str, columns: int, device: torch.device) -> torch.Tensor:
        """Return E, float32 [columns] of +1 and -1."""
        return source.signs(name, COLUMN_STREAM, 0, columns, device).float()

    def factors(
        self, source: Source, name: str, seed: int, rows: int, columns: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return u, float32 [rows], and v, float32 [columns], of +1 and -1; `seed` is the pool index."""
        (tall, wide), (a, b) = self.tile, divmod(seed, self.tile[1])
        u, v = hadamard_column(a, tall, device), hadamard_column(b, wide, device)
        return (
            _tiled(u, rows).mul_(self.row_signs(source, name, rows, device)),
            _tiled(v, columns).mul_(self.column_signs(source, name, columns, device)),
        )

    def vector(self, source: Source, name: str, seed: int, count: int, device: torch.device) -> torch.Tensor:
        """Return a direction of a vector, float32 [count] of +1 and -1."""
        tall, wide = self.tile
        pattern = _tiled(hadamard_column(seed, tall * wide, device), count)
        return pattern.mul_(self.row_signs(source, name, count, device))

    def low_rank(
        self, update: Projected, source: Source, name: str, rows: int, columns: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of directions as two factors, whose rank is Q however many directions there are.

            L[i, q] = D_i M[i mod P, q],   R[q, j] = E_j if j mod Q = q, else 0

        A product of the two has one term that is not 0, so that it is the sum that a replay forms, bit for bit.
        """
        (tall, wide), device = self.tile, torch.device("cpu")
        core, row = self.core(update), torch.arange(rows)
        left = core[row % tall] * self.row_signs(source, name, rows, device).unsqueeze(1)
        right, column = torch.zeros(wide, columns), torch.arange(columns)
        right[column % wide, column] = self.column_signs(source, name, columns, device)
        return left, right

    def core(self, update: Projected) -> torch.Tensor:
        """Return the small matrix that every tensor's sum is tiled from.

            M = H_P C H_Q

        Returns:
            Float32 [P, Q]; rows are transformed first, by butterflies of span 1, 2, 4, ..., then columns.
        Cost: K log2 K additions.
        """
        tall, wide = self.tile
        coefficients = np.zeros(tall * wide, np.float32)
        np.add.at(coefficients, update.keys, update.coefficients)
        across = walsh(torch.from_numpy(coefficients).view(tall, wide))
        return walsh(across.T.contiguous()).T.contiguous()

    def core_of(self, seed: int, coefficient: float) -> torch.Tensor:
        """Return the core of one direction, float32 [P, Q]: `coefficient` times an outer product of signs."""
        (tall, wide), (a, b), cpu = self.tile, divmod(seed, self.tile[1]), torch.device("cpu")
        scale = torch.tensor(coefficient, dtype=torch.float32)
        return torch.outer(hadamard_column(a, tall, cpu) * scale, hadamard_column(b, wide, cpu))

    def replay(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        terms: Iterable[tuple[int, float]],
        source: Source,
        name: str,
    ) -> None:
        """Form `out = base + sum_k a_k z_k`; see `Kind.replay`."""
        keys, values = zip(*terms, strict=True) if (terms := list(terms)) else ((), ())
        update = Projected(np.array(keys, np.int64), np.array(values, np.float32))
        self.add_core(out, base, self.core(update).to(out.device), source, name)

    def add_core(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        core: torch.Tensor,
        source: Source,
        name: str,
        above: int = 0,
    ) -> None:
        """Form `out = base + D tile(M) E` in float32, rounded once.

        Args:
            out: contiguous; may be `base` itself.
            base: like `out` in shape.
            core: M, see `core`.
            source: the key streams.
            name: the parameter's name.
            above: rows of the matrix above these, a multiple of P; 0 for a whole tensor.
        Cost: one pass over the tensor; P rows of scratch.
        """
        tall, _ = self.tile
        if not base.numel():
            return
        if base.dim() < 2:
            signs = self.row_signs(source, name, base.numel(), base.device)
            out.view(-1).copy_(
                _tiled(core.reshape(-1), base.numel()).mul_(signs).add_(base.reshape(-1).float())
            )
            return
        rows, columns = as_matrix(base.shape)
        d, e = (
            source.signs(name, ROW_STREAM, above, rows, base.device).float(),
            self.column_signs(source, name, columns, base.device),
        )
        pattern = _tiled(core, columns).mul_(e)
        to, read, whole = out.view(rows, columns), base.reshape(rows, columns), rows // tall * tall
        each = max(1, CHUNK // (tall * columns)) * tall
        for first in range(0, whole, each):
            part = slice(first, min(first + each, whole))
            tiles = read[part].float().view(-1, tall, columns)
            sums = to[part].view(-1, tall, columns)
            signs = d[part].view(-1, tall, 1)
            if to.dtype == torch.float32:
                torch.addcmul(tiles, signs, pattern, out=sums)
            else:
                sums.copy_(torch.addcmul(tiles, signs, pattern))
        if whole < rows:
            rest = torch.addcmul(read[whole:].float(), d[whole:].unsqueeze(1), pattern[: rows - whole])
            to[whole:] = rest

    def project(
        self, total: torch.Tensor | None, gradient: torch.Tensor, source: Source, name: str
    ) -> torch.Tensor:
        """Add `fold(D G E)`, the sum of the tiles of P rows and Q columns; see `Summed.project`.

        Cost: a pass over the tensor; scratch of CHUNK numbers, or P rows.
        """
        tall, wide = self.tile
        found = torch.zeros(tall, wide, device=gradient.device) if total is None else total
        if not gradient.numel():
            return found
        if gradient.dim() < 2:
            signs = self.row_signs(source, name, gradient.numel(), gradient.device)
            found += _folded(gradient.reshape(-1).float() * signs, tall * wide).view(tall, wide)
            return found
        rows, columns = as_matrix(gradient.shape)
        d = self.row_signs(source, name, rows, gradient.device)
        e = self.column_signs(source, name, columns, gradient.device)
        read, each = gradient.reshape(rows, columns), max(1, CHUNK // (tall * columns)) * tall
        for first in range(0, rows, each):
            part = slice(first, min(first + each, rows))
            across = _folded((read[part].float() * e).mul_(d[part].unsqueeze(1)), wide)
            found += _folded(across.T, tall).T
        return found

    def slopes(self, total: torch.Tensor) -> torch.Tensor:
        """Return `H_P total H_Q`, its first K numbers: the transpose of `core`."""
        across = walsh(total)
        return walsh(across.T.contiguous()).T.reshape(-1)[: self.size]


def _folded(values: torch.Tensor, length: int) -> torch.Tensor:
    """Add up the last dimension in pieces of a length, the last of which may be shorter: the transpose of `_tiled`."""
    count = values.shape[-1]
    padded = functional.pad(values, (0, -count % length))
    return padded.view(*values.shape[:-1], -1, length).sum(dim=-2)


def _tiled(values: torch.Tensor, count: int) -> torch.Tensor:
    """Repeat the last dimension until it holds `count` numbers; a new tensor."""
    length = values.shape[-1]
    if count <= length:
        return values[..., :count].clone()
    times = -(-count // length)
    repeated = values.unsqueeze(-2).expand(*values.shape[:-1], times, length)
    return repeated.reshape(*values.shape[:-1], times * length)[..., :count].contiguous()
