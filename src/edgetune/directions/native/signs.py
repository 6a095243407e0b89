"""A source whose streams the compiled kernel draws."""

from __future__ import annotations

import numpy as np
import torch

from edgetune.directions.chacha import WORDS
from edgetune.directions.native.jobs import ALIGNMENT, TensorDirections
from edgetune.directions.rademacher import Rademacher
from edgetune.directions.source import BITS, Source


class CompiledSource(Source):
    """The key streams of one key, drawn in C: the bits of `Source`.

    Args:
        key: 32 bytes.
        level: instruction set, an index of `native.LEVELS`.
    Cost: a call of some microseconds; 512 signs a ChaCha20 block.
    """

    def __init__(self, key: bytes, level: int) -> None:
        super().__init__(key)
        self._level = level
        self._tensors: dict[str, TensorDirections] = {}

    def words(self, name: str, seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
        """Return int32 [count, 16]: blocks `first ... first + count - 1` of a stream, read off signs drawn in C."""
        if device.type != "cpu":
            return super().words(name, seed, first, count, device)
        skipped = first % (ALIGNMENT // BITS)
        drawn = torch.zeros((skipped + count) * BITS)
        start = (first - skipped) * BITS
        self._tensor(name).axpy(drawn, drawn, 1.0, seed, start=start, level=self._level)
        packed = np.packbits(drawn.numpy() < 0, bitorder="little").view("<i4").astype(np.int32)
        return torch.from_numpy(packed).view(-1, WORDS)[skipped:]

    def signs(self, name: str, seed: int, start: int, count: int, device: torch.device) -> torch.Tensor:
        """Return [count] of +1 and -1: float32 if they were drawn in C, else int8.

        Those for a GPU are drawn here too: a row of signs is small, and the cipher in torch is a thousand launches.
        """
        if start:
            return super().signs(name, seed, start, count, device)
        drawn = torch.zeros(count)
        self._tensor(name).axpy(drawn, drawn, 1.0, seed, level=self._level)
        return drawn.to(device)

    def _tensor(self, name: str) -> TensorDirections:
        if name not in self._tensors:
            self._tensors[name] = TensorDirections(Rademacher(), self.key, name)
        return self._tensors[name]
