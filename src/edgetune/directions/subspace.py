"""Directions of low rank whose seeds' upper halves name a subspace that several steps share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence

import torch

from edgetune.directions.gaussian import Gaussian
from edgetune.directions.kind import CHUNK, Kind
from edgetune.directions.rank_one import as_matrix
from edgetune.directions.source import Source

Rows = Callable[[slice], torch.Tensor]
"""Gives rows of a direction of a matrix, float32 [rows of the slice, columns]."""
Common = tuple[torch.Tensor, ...]


def subspace_of(seed: int) -> int:
    """Return the seed of the stream that a subspace is drawn from: the upper 32 bits, the lower ones zero."""
    return seed >> 32 << 32


class SubspaceKind(Kind):
    """The base of kinds whose directions of a matrix lie in a subspace of low rank; vectors are plain Gaussian ones.

    A tensor of more than two dimensions is a matrix of its last one.
    """

    @abstractmethod
    def common(
        self, source: Source, name: str, seed: int, rows: int, columns: int, device: torch.device
    ) -> Common:
        """Return what all directions share whose seeds have the upper 32 bits of this one."""

    @abstractmethod
    def within(self, source: Source, name: str, seed: int, common: Common, rows: int, columns: int) -> Rows:
        """Return a direction of a matrix, to be formed some rows at a time.

        Args:
            source: the key streams.
            name: the parameter's name.
            seed: the direction.
            common: what `common` gave.
            rows: of the matrix.
            columns: of the matrix.
        """

    def whole(
        self, source: Source, name: str, seed: int, shape: Sequence[int], device: torch.device
    ) -> torch.Tensor:
        """Return a direction of a whole tensor, float32 of its shape."""
        if len(shape) < 2:
            return Gaussian().values(source, name, seed, 0, math.prod(shape), device).view(tuple(shape))
        rows, columns = as_matrix(shape)
        common = self.common(source, name, seed, rows, columns, device)
        return self.within(source, name, seed, common, rows, columns)(slice(0, rows)).view(tuple(shape))

    def axpy(
        self, out: torch.Tensor, base: torch.Tensor, coefficient: float, source: Source, name: str, seed: int
    ) -> None:
        """Form `out = base + coefficient * z(seed)`; see `Kind.axpy`.

        Cost: one pass over the tensor, and one a rank over rows that a cache holds.
        """
        self.replay(out, base, [(seed, coefficient)], source, name)

    def replay(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        terms: Iterable[tuple[int, float]],
        source: Source,
        name: str,
    ) -> None:
        """Form `out = ((base + a_1 z_1) + a_2 z_2) + ...`; see `Kind.replay`.

        Cost: a draw of the factors and one pass over the rows that a cache holds for every term; their factors stay in
        memory until the tensor is formed.
        """
        if not base.numel():
            return
        if base.dim() < 2:
            Gaussian().replay(out, base, terms, source, name)
            return
        rows, columns = as_matrix(base.shape)
        shared: dict[int, Common] = {}
        drawn: list[tuple[Rows, torch.Tensor]] = []
        for seed, value in terms:
            top = subspace_of(seed)
            if top not in shared:
                shared[top] = self.common(source, name, seed, rows, columns, base.device)
            direction = self.within(source, name, seed, shared[top], rows, columns)
            drawn.append((direction, torch.tensor(value, dtype=torch.float32, device=base.device)))
        to, read, each = out.view(rows, columns), base.reshape(rows, columns), max(1, CHUNK // columns)
        for first in range(0, rows, each):
            part = slice(first, min(first + each, rows))
            total = read[part].to(torch.float32, copy=True)
            for direction, coefficient in drawn:
                total += direction(part).mul_(coefficient)
            to[part] = total
