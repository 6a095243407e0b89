"""Numbers in a bit: which way, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgetune.wire.values import Numbers, Values

ALL, SOME = 0, 1
"""Scales: every number has a sign; some are no value, and as many bits more say which."""


@dataclass(frozen=True, slots=True)
class Sign(Values):
    """A bit a number: 1 where it is at least 0; they arrive as 1 and -1.

    Where one is no value a second row of bits says which are some: a step without a slope has no vote. Bits come least
    significant first; those that are left of the last byte are 0.

    Cost: 1 bit a number; 2 bits where some are no value.
    Source: Cai et al. 2025, arXiv:2501.17610 (FeedSign).
    """

    name: ClassVar[str] = "sign"
    width: ClassVar[int] = 1

    def scale(self, numbers: Numbers) -> int:
        """Return whether all numbers have a sign."""
        return SOME if np.isnan(numbers).any() else ALL

    def length(self, count: int, scale: int) -> int:
        """Return the bytes of so many bits, once or twice."""
        return -(-count // 8) * (2 if scale == SOME else 1)

    def encode(self, numbers: Numbers, scale: int) -> bytes:
        """Return the bits."""
        signs = _bits(numbers >= 0)
        return signs + _bits(~np.isnan(numbers)) if scale == SOME else signs

    def decode(self, body: bytes, scale: int, count: int) -> Numbers:
        """Return 1 and -1."""
        row = -(-count // 8)
        numbers = np.where(_read(body[:row], count), 1.0, -1.0).astype(np.float32)
        if scale == SOME:
            numbers[~_read(body[row:], count)] = np.nan
        return numbers


def _bits(said: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> bytes:
    return np.packbits(said, bitorder="little").tobytes()


def _read(body: bytes, count: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.unpackbits(np.frombuffer(body, np.uint8), count=count, bitorder="little").astype(bool)
