"""Directions of rank one: a matrix moves along the product of a column and a row of signs."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.core.update import Projected
from edgetune.directions.kind import CHUNK, Kind
from edgetune.directions.source import BITS, Source


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Return the rows and columns of a tensor as a matrix: its last dimension is the columns'.

    Args:
        shape: of two or more dimensions.
    """
    return math.prod(shape[:-1]), shape[-1]


class RankOneKind(Kind):
    """The base of kinds whose directions of matrices are outer products of signs.

        z = u v^T,   (W + s z) x = W x + s u (v . x)

    A tensor of more dimensions is a matrix of its last one; one of fewer is a vector of signs.
    """

    @abstractmethod
    def factors(
        self, source: Source, name: str, seed: int, rows: int, columns: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return u, float32 [rows], and v, float32 [columns], of +1 and -1.

        Cost: a key stream block for 512 signs.
        """

    @abstractmethod
    def vector(self, source: Source, name: str, seed: int, count: int, device: torch.device) -> torch.Tensor:
        """Return a direction of a vector, float32 [count] of +1 and -1."""

    @abstractmethod
    def low_rank(
        self, update: Projected, source: Source, name: str, rows: int, columns: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of directions of a matrix as two factors.

            sum_k a_k z_k = L R

        Args:
            update: a_k, at least one.
            source: the key streams.
            name: the parameter's name.
            rows: of the matrix.
            columns: of the matrix.

        Returns:
            L, float32 [rows, rank], and R, float32 [rank, columns] of +1, -1 and 0.
        """

    def whole(
        self, source: Source, name: str, seed: int, shape: Sequence[int], device: torch.device
    ) -> torch.Tensor:
        """Return a direction of a whole tensor, float32 of its shape."""
        if len(shape) < 2:
            return self.vector(source, name, seed, math.prod(shape), device).view(tuple(shape))
        u, v = self.factors(source, name, seed, *as_matrix(shape), device)
        return torch.outer(u, v).view(tuple(shape))

    def axpy(
        self, out: torch.Tensor, base: torch.Tensor, coefficient: float, source: Source, name: str, seed: int
    ) -> None:
        """Form `out = base + coefficient * z(seed)`; see `Kind.axpy`.

        Cost: one pass over the tensor.
        """
        self.replay_in_order(out, base, [(seed, coefficient)], source, name)

    def replay_in_order(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        terms: Iterable[tuple[int, float]],
        source: Source,
        name: str,
    ) -> None:
        """Form `out = ((base + a_1 z_1) + a_2 z_2) + ...`, a group of rows that a cache holds at a time.

        Products of a coefficient and signs are exact, so that a fused multiplication and addition gives the same bits.

        Cost: one pass over the tensor, in the cache one more for every further term.
        """
        pairs = [(seed, torch.tensor(value, dtype=torch.float32)) for seed, value in terms]
        if not base.numel():
            return
        if base.dim() < 2:
            total = base.to(torch.float32, copy=True).view(-1)
            for seed, value in pairs:
                total += self.vector(source, name, seed, len(total), base.device) * value
            out.view(-1).copy_(total)
            return
        rows, columns = as_matrix(base.shape)
        drawn = [
            (self.factors(source, name, seed, rows, columns, base.device), value) for seed, value in pairs
        ]
        steps = [((u * value).unsqueeze(1), v) for (u, v), value in drawn]
        to, read = out.view(rows, columns), base.reshape(rows, columns)
        each = max(1, CHUNK // columns)
        for first in range(0, rows, each):
            part = slice(first, first + each)
            plain = to.dtype == torch.float32
            total = to[part] if plain else torch.empty(read[part].shape, device=to.device)
            present = read[part].float()
            for u, v in steps:
                present = torch.addcmul(present, u[part], v, out=total)
            if not plain or not steps:
                to[part] = present


@dataclass(frozen=True, slots=True)
class RankOne(RankOneKind):
    """Independent random signs on rows and columns.

        z = u v^T,   u_i = 1 - 2 bit_i,   v_j = 1 - 2 bit_(R + j),   R: the rows rounded up to a multiple of 512

    Two directions of an m x n matrix have an inner product of mean 0 and variance m n, as dense signs have.

    Cost: (rows + columns) / 512 ChaCha20 blocks a matrix.
    Source: cf. EGGROLL, arXiv:2511.16652; GRZO, arXiv:2606.02857; element order: "Directions" of docs/formats.md.
    """

    name: ClassVar[str] = "rank_one"

    def factors(
        self, source: Source, name: str, seed: int, rows: int, columns: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return u, float32 [rows], and v, float32 [columns], of +1 and -1."""
        above = -(-rows // BITS) * BITS
        drawn = source.signs(name, seed, 0, above + columns, device).float()
        return drawn[:rows], drawn[above:]

    def vector(self, source: Source, name: str, seed: int, count: int, device: torch.device) -> torch.Tensor:
        """Return a direction of a vector, float32 [count] of +1 and -1: Rademacher's."""
        return source.signs(name, seed, 0, count, device).float()

    def low_rank(
        self, update: Projected, source: Source, name: str, rows: int, columns: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of directions as two factors; the rank is the number of directions.

        L_k = a_k u_k,   R_k = v_k
        """
        device = torch.device("cpu")
        drawn = [self.factors(source, name, seed, rows, columns, device) for seed in update.keys.tolist()]
        left = torch.stack([u for u, _ in drawn], 1) * torch.from_numpy(update.coefficients.copy())
        return left, torch.stack([v for _, v in drawn])

    def replay(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        terms: Iterable[tuple[int, float]],
        source: Source,
        name: str,
    ) -> None:
        """Form `out = ((base + a_1 z_1) + a_2 z_2) + ...`; see `Kind.replay`."""
        self.replay_in_order(out, base, terms, source, name)
