"""Rademacher directions: +1 or -1, one key stream bit a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.directions.kind import Elementwise
from edgetune.directions.source import Source


@dataclass(frozen=True, slots=True)
class Rademacher(Elementwise):
    """Independent random signs; the two-point estimator's lowest-variance choice.

        z_j = 1 - 2 * bit_j

    Cost: 512 elements a ChaCha20 block.
    Source: Spall 1992 (SPSA); element order: section "Directions" of docs/formats.md.
    """

    name: ClassVar[str] = "rademacher"

    def values(
        self, source: Source, name: str, seed: int, start: int, count: int, device: torch.device
    ) -> torch.Tensor:
        """Return float32 [count] of +1 and -1."""
        return source.signs(name, seed, start, count, device).float()
