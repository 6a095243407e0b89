"""A source whose sign streams the compiled kernel draws."""

from __future__ import annotations

import torch

from edgetune.directions.native.jobs import TensorDirections
from edgetune.directions.rademacher import Rademacher
from edgetune.directions.source import Source


class CompiledSource(Source):
    """The key streams of one key, signs from element 0 on drawn in C: the bits of `Source`.

    Args:
        key: 32 bytes.
        level: instruction set, an index of `native.LEVELS`.
    Cost: a call of some microseconds; 512 signs a ChaCha20 block.
    """

    def __init__(self, key: bytes, level: int) -> None:
        super().__init__(key)
        self._level = level
        self._tensors: dict[str, TensorDirections] = {}

    def signs(self, name: str, seed: int, start: int, count: int, device: torch.device) -> torch.Tensor:
        """Return [count] of +1 and -1: float32 if they were drawn in C, else int8."""
        if start or device.type != "cpu":
            return super().signs(name, seed, start, count, device)
        if name not in self._tensors:
            self._tensors[name] = TensorDirections(Rademacher(), self.key, name)
        drawn = torch.zeros(count)
        self._tensors[name].axpy(drawn, drawn, 1.0, seed, level=self._level)
        return drawn
