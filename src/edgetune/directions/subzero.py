"""SubZero's directions: a matrix moves within one subspace of rank 16 that stays for some steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.directions.gaussian import PER_BLOCK, Gaussian
from edgetune.directions.hadamard import walsh
from edgetune.directions.source import BITS, Source
from edgetune.directions.subspace import Common, Rows, SubspaceKind, subspace_of

RANK = 16
"""Rank of the subspace: the published one for models of a billion weights."""
CORE_BITS = RANK * RANK * (BITS // PER_BLOCK)
"""Bits of the stream that Z takes."""


@dataclass(frozen=True, slots=True)
class SubZero(SubspaceKind):
    """Gaussian directions within the span of signed Hadamard columns, which stay while the seed's upper 32 bits stay.

        z = U Z V^T / r,   U = D tile(H_r) [m, r],   V = E tile(H_r) [n, r],   Z [r, r] Gaussian,   r = 16
        z[i, j] = D_i M[i mod r, j mod r] E_j,   M = H_r Z H_r / r

    The signs D and E come from the stream of the upper 32 bits alone, behind the bits that Z takes there, Z from that
    of the whole seed. Columns of U, and of V, are exactly orthogonal on whole tiles of r. The paper takes QR factors of
    Gaussian matrices, whose bits differ from machine to machine, with columns of norm 1; here entries of z have unit
    variance, so that eps and rates are those of dense directions. A row shares its coordinates with every r-th one up
    to a sign: below some 100 rows, subspaces of different intervals overlap.

    Cost: (rows + columns) / 512 ChaCha20 blocks a matrix, 8 for Z, and one pass.
    Source: Yu et al. 2024, arXiv:2410.08989 (SubZero); many queries in one subspace: arXiv:2608.15665 (SubZero+);
    element order: "Directions" of docs/formats.md.
    """

    name: ClassVar[str] = "subzero"

    def common(
        self, source: Source, name: str, seed: int, rows: int, columns: int, device: torch.device
    ) -> Common:
        """Return D, float32 [rows], and E, float32 [columns], of +1 and -1."""
        above = CORE_BITS + -(-rows // BITS) * BITS
        drawn = source.signs(name, subspace_of(seed), 0, above + columns, device).float()
        return drawn[CORE_BITS : CORE_BITS + rows], drawn[above:]

    def within(self, source: Source, name: str, seed: int, common: Common, rows: int, columns: int) -> Rows:
        """Return `D tile(M) E`, some rows at a time."""
        d, e = common
        drawn = Gaussian().values(source, name, seed, 0, RANK * RANK, d.device).view(RANK, RANK)
        core = walsh(walsh(drawn).T.contiguous()).T.mul(1 / RANK)
        row, column = (
            torch.arange(rows, device=d.device) % RANK,
            torch.arange(columns, device=d.device) % RANK,
        )

        pattern = core[:, column].mul_(e)

        def formed(part: slice) -> torch.Tensor:
            return pattern[row[part]].mul_(d[part].unsqueeze(1))

        return formed
