"""A base read as it is stored, without any direction: dequantised in parts, or multiplied by in the cache."""

from __future__ import annotations

import torch

from edgetune.core.quantised import StoredTensor
from edgetune.core.update import Projected
from edgetune.directions import native
from edgetune.directions.native.product import Matrix, multiplies
from edgetune.directions.rademacher import Rademacher

_SIGNS, _NOTHING = Rademacher(), Projected.none()


class StoredReader:
    """What the compiled kernel reads for itself: Q4_0, Q8_0, and floats of any width.

    Args:
        level: instruction set, an index of `native.LEVELS`; None where there is no kernel.
        few: rows up to which a product reads blocks in the cache.
    """

    def __init__(self, level: int | None, few: int) -> None:
        self._level, self._few = level, few
        self._matrix = Matrix(_SIGNS, bytes(32), "")
        self._terms = native.Terms(_SIGNS, _NOTHING)

    @property
    def alignment(self) -> int:
        """Multiples of elements at which a part of whole rows may start."""
        return native.ALIGNMENT if self._level is not None else 1

    def part(self, out: torch.Tensor, stored: StoredTensor) -> None:
        """Dequantise a part of a tensor.

        Args:
            out: float32, contiguous; written.
            stored: as many elements, from a multiple of `alignment` on.
        Cost: one pass.
        """
        if self._level is not None and native.serves(_SIGNS, out, stored):
            self._matrix.replay(out, stored, self._terms, level=self._level)
        else:
            plain = stored if isinstance(stored, torch.Tensor) else stored.dequantise()
            out.view(-1).copy_(plain.view(-1))

    def product(self, x: torch.Tensor, stored: StoredTensor) -> torch.Tensor | None:
        """Multiply by a matrix as it is stored.

        Args:
            x: float32 [rows, inputs].
            stored: [outputs, inputs].

        Returns:
            Float32 [rows, outputs], or None where forming the matrix is the faster way, or the only one.
        Cost: one pass over the blocks.
        """
        if self._level is None or len(x) > 2 * self._few or not multiplies(_SIGNS, x, stored, stored=False):
            return None
        # Both points of a step are twice as many rows as one of them, for which the cache is the faster way.
        parts = x.chunk(2) if len(x) > self._few else (x,)
        found = [
            self._matrix.multiply(part, stored, 0, (0.0,), state=self._terms, level=self._level)
            for part in parts
        ]
        return found[0] if len(found) == 1 else torch.cat(found)
