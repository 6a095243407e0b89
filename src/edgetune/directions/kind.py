"""What every kind of direction can do: be added to a tensor, be summed over a pool, be read in slices."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import torch

from edgetune.core.errors import ModelError
from edgetune.core.update import Keys
from edgetune.directions.source import Source

CHUNK = 1 << 18
"""Elements formed at a time by the loops in torch; bounds their memory whatever the tensor's size."""


class Kind(ABC):
    """How key streams become directions; implementations are frozen values."""

    name: ClassVar[str]
    sized: ClassVar[bool] = False
    """Whether its directions form a pool, whose size it is made with, and which one transform sums."""

    @property
    def limit(self) -> int:
        """Seeds of this kind are at least 0 and below it."""
        return 1 << 64

    def refuse(self, seeds: int | Keys) -> None:
        """Refuse seeds (or pool indices) that this kind has not: whatever computes with them relies on it.

        Raises:
            ModelError: naming one of them.
        """
        low, high = (seeds, seeds) if not isinstance(seeds, np.ndarray) else _ends(seeds)
        if low < 0 or high >= self.limit:
            raise ModelError(
                f"there is no direction {low if low < 0 else high}: {self.name} directions are numbered"
                f" from 0 to {self.limit - 1}"
            )

    @abstractmethod
    def whole(
        self, source: Source, name: str, seed: int, shape: Sequence[int], device: torch.device
    ) -> torch.Tensor:
        """Return a direction of a whole tensor, float32 of its shape."""

    @abstractmethod
    def axpy(
        self, out: torch.Tensor, base: torch.Tensor, coefficient: float, source: Source, name: str, seed: int
    ) -> None:
        """Form a perturbed tensor: computed in float32, rounded once.

            out = base + coefficient * z(seed)

        Args:
            out: [...], any float dtype, contiguous; may be `base` itself.
            base: [...] like `out` in shape, any float dtype; read only.
            coefficient: rounded to float32 first.
            source: the key streams.
            name: the parameter's name.
            seed: the direction.
        """

    @abstractmethod
    def replay(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        terms: Iterable[tuple[int, float]],
        source: Source,
        name: str,
    ) -> None:
        """Rebuild a tuned tensor from its ledger: added in float32 one after the other, rounded once at the end.

            out = ((base + a_1 z_1) + a_2 z_2) + ...   in the order given

        These are the additions of the steps themselves, so that going on from a sum equals forming it anew. A pool that
        is summed by a transform adds that sum.

        Args:
            out: [...], any float dtype, contiguous; may be `base` itself.
            base: [...] like `out` in shape; read only.
            terms: pairs (seed, coefficient).
            source: the key streams.
            name: the parameter's name.
        """


class Summed(Kind):
    """Pools whose sum is one transform; its transpose takes slopes along all directions at once."""

    @abstractmethod
    def project(
        self, total: torch.Tensor | None, gradient: torch.Tensor, source: Source, name: str
    ) -> torch.Tensor:
        """Add what a tensor's gradient says to what those before it said.

        Args:
            total: what this method returned for the tensors before; None before the first.
            gradient: [...], any float dtype.
            source: the key streams.
            name: the parameter's name.

        Returns:
            Float32, of as many numbers as the pool has directions, or a few more.
        Cost: a pass over the tensor, or one and a transform.
        """

    @abstractmethod
    def slopes(self, total: torch.Tensor) -> torch.Tensor:
        """Return `<G, z_k>` for every direction k, float32 [K], G being all gradients of a total of `project`."""


class Elementwise(Kind):
    """Kinds whose element j of a flattened tensor depends on j alone, whatever the tensor's shape."""

    @abstractmethod
    def values(
        self, source: Source, name: str, seed: int, start: int, count: int, device: torch.device
    ) -> torch.Tensor:
        """Return float32 [count]: elements `start ... start + count - 1` of direction `seed` of tensor `name`.

        Args:
            source: the key streams.
            name: the parameter's name.
            seed: the direction, in [0, 2^64); a pool index for pooled kinds.
            start: first element of the flattened (row-major) tensor.
            count: number of elements.
            device: where to compute.
        """

    def whole(
        self, source: Source, name: str, seed: int, shape: Sequence[int], device: torch.device
    ) -> torch.Tensor:
        """Return a direction of a whole tensor, float32 of its shape."""
        return self.values(source, name, seed, 0, math.prod(shape), device).view(tuple(shape))

    def axpy(
        self, out: torch.Tensor, base: torch.Tensor, coefficient: float, source: Source, name: str, seed: int
    ) -> None:
        """Form `out = base + coefficient * z(seed)`; see `Kind.axpy`.

        Cost: one draw and one pass over the tensor; about 10 bytes a chunk element beside it.
        """
        flat_out, flat_base = out.view(-1), base.reshape(-1)
        scale = torch.tensor(coefficient, dtype=torch.float32, device=out.device)
        for start in range(0, flat_base.numel(), CHUNK):
            part = slice(start, min(start + CHUNK, flat_base.numel()))
            z = self.values(source, name, seed, start, part.stop - start, out.device)
            flat_out[part] = z.mul_(scale).add_(flat_base[part].float())

    def replay(
        self,
        out: torch.Tensor,
        base: torch.Tensor,
        terms: Iterable[tuple[int, float]],
        source: Source,
        name: str,
    ) -> None:
        """Form `out = ((base + a_1 z_1) + a_2 z_2) + ...`; see `Kind.replay`.

        Cost: one draw and one pass over a chunk for every term.
        """
        pairs = [(seed, torch.tensor(value, dtype=torch.float32)) for seed, value in terms]
        flat_out, flat_base = out.view(-1), base.reshape(-1)
        for start in range(0, flat_base.numel(), CHUNK):
            part = slice(start, min(start + CHUNK, flat_base.numel()))
            total = flat_base[part].to(torch.float32, copy=True)
            for seed, value in pairs:
                total += self.values(source, name, seed, start, part.stop - start, out.device).mul_(value)
            flat_out[part] = total


def _ends(seeds: Keys) -> tuple[int, int]:
    return (int(seeds.min()), int(seeds.max())) if len(seeds) else (0, 0)
