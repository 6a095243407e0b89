"""A kind of direction bound to a key: what the tuned handle reads its perturbations from."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from edgetune.directions.kind import Kind
from edgetune.directions.source import Source


class BoundSpace:
    """Directions of one kind under one key (see `core.tuned.Space`).

    Args:
        kind: what a direction looks like.
        source: the key streams.
    """

    def __init__(self, kind: Kind, source: Source) -> None:
        self.kind, self.source = kind, source

    def axpy(self, out: torch.Tensor, base: torch.Tensor, coefficient: float, name: str, seed: int) -> None:
        """Form `out = base + coefficient * z(seed)`; see `Kind.axpy`."""
        self.kind.axpy(out, base, coefficient, self.source, name, seed)

    def replay(
        self, out: torch.Tensor, base: torch.Tensor, terms: Iterable[tuple[int, float]], name: str
    ) -> None:
        """Form `out = base + sum_k a_k z_k`; see `Kind.replay`."""
        self.kind.replay(out, base, terms, self.source, name)


class KeptSpace(BoundSpace):
    """Directions that are drawn once a step and kept, as classical ZO-SGD does.

    Cost: one float32 copy of all weights beside them; one draw a step instead of three.
    """

    def __init__(self, kind: Kind, source: Source) -> None:
        super().__init__(kind, source)
        self._seed: int | None = None
        self._kept: dict[str, torch.Tensor] = {}

    def axpy(self, out: torch.Tensor, base: torch.Tensor, coefficient: float, name: str, seed: int) -> None:
        """Form `out = base + coefficient * z(seed)` from the kept direction."""
        if seed != self._seed:
            self._seed, self._kept = seed, {}
        if name not in self._kept:
            flat = self.kind.values(self.source, name, seed, 0, base.numel(), base.device)
            self._kept[name] = flat.view(base.shape)
        scale = torch.tensor(coefficient, dtype=torch.float32, device=base.device)
        out.copy_((self._kept[name] * scale).add_(base.float()))
