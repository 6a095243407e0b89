"""A pool of K Hadamard directions: any two orthogonal, and the whole pool summed by one fast transform."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch

from edgetune.core.errors import ConfigError
from edgetune.directions.kind import Elementwise, Summed
from edgetune.directions.source import Source

ROW_STREAM, COLUMN_STREAM = 0, 1
"""Seeds of the two sign streams under the pool's own key."""
ROWS_AT_ONCE = 64
"""Blocks transformed together; bounds the memory of a replay."""


def walsh(blocks: torch.Tensor) -> torch.Tensor:
    """Return the Walsh-Hadamard transform of every row, natural order.

        y_i = sum_k (-1)^popcount(i & k) x_k

    Args:
        blocks: float32 [rows, 2^m].

    Returns:
        float32 [rows, 2^m], butterflies of span 1, 2, 4, ... in this order (it fixes the rounding).
    Cost: m 2^m additions a row.
    """
    rows, size = blocks.shape
    span = 1
    while span < size:
        pairs = blocks.reshape(rows, size // (2 * span), 2, span)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        blocks = torch.stack([low + high, low - high], dim=2).reshape(rows, size)
        span *= 2
    return blocks


@lru_cache(maxsize=4)
def hadamard_column(index: int, size: int, device: torch.device) -> torch.Tensor:
    """Return float32 [size]: `(-1)^popcount(i & index)` for i = 0 ... size - 1; do not write to it.

    A step reads the same column for every tensor of the model, three times; the last few are remembered.
    """
    bits = torch.arange(size, device=device) & index
    for shift in (16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return (1 - 2 * (bits & 1)).float()


@dataclass(frozen=True, slots=True)
class Hadamard(Elementwise, Summed):
    """A pool of K directions, each alone i.i.d. Rademacher, any two exactly orthogonal on whole blocks.

        z_k[bP + i] = D_b[i] * (-1)^popcount(i & k) * S_b[k]

    P is the pool's size K rounded up to a power of two; D_b and S_b are elements bP ... bP + P - 1 of the Rademacher
    streams of seed 0 and seed 1; a last partial block is truncated.

    Args:
        size: K, at least 1, at most 2^20.

    Raises:
        ConfigError: if the size is out of range.
    Cost: a replay of all K directions takes log2 P additions a weight instead of K draws.
    """

    name: ClassVar[str] = "hadamard"
    sized: ClassVar[bool] = True
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 1 << 20:
            raise ConfigError(f"a Hadamard pool needs 1 to 1,048,576 directions, not {self.size}")

    @property
    def limit(self) -> int:
        """K."""
        return self.size

    @property
    def padded(self) -> int:
        """P, the block length."""
        return 1 << (self.size - 1).bit_length()

    def values(
        self, source: Source, name: str, seed: int, start: int, count: int, device: torch.device
    ) -> torch.Tensor:
        """Return float32 [count] of +1 and -1; `seed` is the pool index k."""
        first = start // self.padded
        blocks = -(-(start + count) // self.padded) - first
        rows = source.signs(name, ROW_STREAM, start, count, device).float()
        pattern = hadamard_column(seed, self.padded, device).repeat(blocks)[start - first * self.padded :][
            :count
        ]
        reach = max(0, (blocks - 1) * self.padded + 1)
        columns = source.signs(name, COLUMN_STREAM, first * self.padded + seed, reach, device)[:: self.padded]
        return (
            rows
            * pattern
            * columns.float().repeat_interleave(self.padded)[start - first * self.padded :][:count]
        )

    def axpy(
        self, out: torch.Tensor, base: torch.Tensor, coefficient: float, source: Source, name: str, seed: int
    ) -> None:
        """Form `out = base + coefficient * z_k` in float32, rounded once; see `Kind.axpy`."""
        rows, columns = self._streams(source, name, base.numel(), out.device)
        z = rows[: base.numel()].float()
        pattern = hadamard_column(seed, self.padded, out.device) * coefficient
        signs = columns.view(-1, self.padded)[:, seed].float().unsqueeze(1)
        whole = base.numel() // self.padded
        z[: whole * self.padded].view(whole, self.padded).mul_(pattern).mul_(signs[:whole])
        tail = z[whole * self.padded :]
        if len(tail):
            tail.mul_(pattern[: len(tail)]).mul_(signs[whole])
        out.view(-1).copy_(z.add_(base.reshape(-1)))

    def replay(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        terms: Iterable[tuple[int, float]],
        source: Source,
        name: str,
    ) -> None:
        """Form `out = base + sum_k a_k z_k` by one fast transform a block; see `Kind.replay`."""
        coefficients = torch.zeros(self.padded, dtype=torch.float32, device=out.device)
        for index, value in terms:
            coefficients[index] += value
        rows, columns = self._streams(source, name, base.numel(), out.device)
        flat_out, flat_base = out.view(-1), base.reshape(-1)
        step = ROWS_AT_ONCE * self.padded
        for start in range(0, base.numel(), step):
            signed = columns[start : start + step].view(-1, self.padded).float() * coefficients
            total = walsh(signed).reshape(-1)[: base.numel() - start]
            total *= rows[start : start + len(total)]
            flat_out[start : start + len(total)] = total.add_(flat_base[start : start + len(total)].float())

    def project(
        self, total: torch.Tensor | None, gradient: torch.Tensor, source: Source, name: str
    ) -> torch.Tensor:
        """Add `sum_b S_b H (D_b G_b)` over the blocks b of a tensor; see `Summed.project`."""
        found = torch.zeros(self.padded, device=gradient.device) if total is None else total
        rows, columns = self._streams(source, name, gradient.numel(), gradient.device)
        flat, step = gradient.reshape(-1), ROWS_AT_ONCE * self.padded
        for start in range(0, gradient.numel(), step):
            signed = rows[start : start + step].float()
            count = min(step, gradient.numel() - start)
            signed[:count] *= flat[start : start + count].float()
            signed[count:] = 0
            signs = columns[start : start + step].view(-1, self.padded)
            found += walsh(signed.view(-1, self.padded)).mul_(signs).sum(dim=0)
        return found

    def slopes(self, total: torch.Tensor) -> torch.Tensor:
        """Return the total's first K numbers."""
        return total[: self.size]

    def _streams(
        self, source: Source, name: str, count: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the row and column signs of whole blocks covering `count` elements, int8."""
        whole = -(-count // self.padded) * self.padded
        return (
            source.signs(name, ROW_STREAM, 0, whole, device),
            source.signs(name, COLUMN_STREAM, 0, whole, device),
        )
