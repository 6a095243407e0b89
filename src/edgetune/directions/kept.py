"""Directions that are drawn once a step and kept, as classical ZO-SGD does."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from edgetune.core.moves import Moves
from edgetune.core.quantised import StoredTensor
from edgetune.directions.kind import Kind
from edgetune.directions.space import BoundSpace


class KeptSpace(BoundSpace):
    """Directions that are drawn once a step and kept, as classical ZO-SGD does.

    Cost: one float32 copy of all weights beside them; one draw a step instead of three.
    """

    def __init__(self, kind: Kind, key: bytes, *, pooled: bool = False) -> None:
        super().__init__(kind, key, pooled=pooled)
        self._seed: int | None = None
        self._kept: dict[str, torch.Tensor] = {}

    def moves(self, scales: Mapping[str, float]) -> Moves | None:
        """Return None: a kept direction is as large as the weights."""
        return None

    @property
    def alignment(self) -> int:
        """0: the direction is kept whole, and so are the tensors."""
        return 0

    def multiplies(self, x: torch.Tensor, weight: StoredTensor, *, stored: bool = True) -> bool:
        """Return False: a product would draw the direction anew."""
        return False

    def axpy(
        self, out: torch.Tensor, base: torch.Tensor, coefficient: float, name: str, seed: int, start: int = 0
    ) -> None:
        """Form `out = base + coefficient * z(seed)` of a whole tensor from the kept direction."""
        self.kind.refuse(seed)
        if seed != self._seed:
            self._seed, self._kept = seed, {}
        if name not in self._kept:
            self._kept[name] = self.kind.whole(self._source, name, seed, base.shape, base.device)
        scale = torch.tensor(coefficient, dtype=torch.float32, device=base.device)
        out.copy_((self._kept[name] * scale).add_(base.float()))
