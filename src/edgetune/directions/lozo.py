"""LOZO's directions: a matrix moves along a product of rank two, of which one factor stays for some steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.directions.gaussian import PER_BLOCK, Gaussian
from edgetune.directions.source import Source
from edgetune.directions.subspace import Common, Rows, SubspaceKind, subspace_of

RANK = 2
"""Rank of a direction, the published one."""


@dataclass(frozen=True, slots=True)
class Lozo(SubspaceKind):
    """Products of Gaussian factors of rank r = 2; V stays while the upper 32 bits of the seed stay.

        z = U V^T / sqrt(r),   U [m, r] from the stream of the seed,   V [n, r] from that of its upper 32 bits alone

    U begins its stream, V begins m r elements further, rounded up to a whole block, so that the two share none even
    where both streams are one. U is divided first; products are summed in ascending order. Entries have unit variance.

    Cost: (rows + columns) / 16 ChaCha20 blocks a matrix.
    Source: Chen et al. 2024, arXiv:2410.07698 (LOZO); element order: "Directions" of docs/formats.md.
    """

    name: ClassVar[str] = "lozo"

    def common(
        self, source: Source, name: str, seed: int, rows: int, columns: int, device: torch.device
    ) -> Common:
        """Return V, float32 [columns, r]."""
        above = -(-rows * RANK // PER_BLOCK) * PER_BLOCK
        drawn = Gaussian().values(source, name, subspace_of(seed), above, columns * RANK, device)
        return (drawn.view(columns, RANK),)

    def within(self, source: Source, name: str, seed: int, common: Common, rows: int, columns: int) -> Rows:
        """Return `U V^T / sqrt(r)`, some rows at a time."""
        (v,) = common
        scale = torch.tensor(1 / math.sqrt(RANK), dtype=torch.float32)
        u = Gaussian().values(source, name, seed, 0, rows * RANK, v.device).view(rows, RANK).mul_(scale)

        def formed(part: slice) -> torch.Tensor:
            total = torch.outer(u[part, 0], v[:, 0])
            for column in range(1, RANK):
                total += torch.outer(u[part, column], v[:, column])
            return total

        return formed
