"""How coefficients are written: wide and exact, or in two bytes with a stated error."""

from __future__ import annotations

import math
import struct
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgetune.core.part import Part

Numbers = npt.NDArray[np.float32]
TOP = 15
"""Binary exponent below which every scaled number lies: float16 holds magnitudes up to 65,504."""


class Values(Part):
    """How float32 numbers are written, each in `width` bytes, under one scale a message; NaN is one of them."""

    __slots__ = ()
    width: ClassVar[int]

    @abstractmethod
    def scale(self, numbers: Numbers) -> int:
        """Return the power of two that numbers are divided by, in [-128, 127]; it follows from the greatest one."""

    @abstractmethod
    def encode(self, numbers: Numbers, scale: int) -> bytes:
        """Return the bytes."""

    @abstractmethod
    def decode(self, body: bytes, scale: int, count: int) -> Numbers:
        """Return so many numbers, those that `encode` writes so; NaN for what is no value."""

    def length(self, count: int, scale: int) -> int:
        """Return the bytes of so many numbers under a scale."""
        return self.width * count

    def write(self, numbers: Numbers) -> bytes:
        """Return the scale (int8) and the numbers, as they arrive: what they round to may be of another scale."""
        numbers = self.settle(np.where(np.isnan(numbers), np.float32(np.nan), numbers))
        scale = self.scale(numbers)
        return struct.pack("<b", scale) + self.encode(numbers, scale)

    def read(self, body: bytes, count: int, start: int = 0) -> tuple[Numbers, int]:
        """Return so many numbers that begin somewhere in a body, and where they end.

        Raises:
            ValueError: if `write` would have written them otherwise, or the body ends before.
        """
        if len(body) <= start:
            raise ValueError("no numbers")
        (scale,) = struct.unpack_from("<b", body, start)
        end = start + 1 + self.length(count, scale)
        if end > len(body):
            raise ValueError("too few numbers")
        numbers = self.decode(body[start + 1 : end], scale, count)
        numbers[np.isnan(numbers)] = np.nan
        if self.write(numbers) != body[start:end]:
            raise ValueError("written otherwise")
        return numbers, end

    def settle(self, numbers: Numbers) -> Numbers:
        """Return the numbers that arrive; they settle at themselves, under the same scale."""
        for _ in range(2):  # the greatest number may be rounded up to the next power of two
            scale = self.scale(numbers)
            numbers = self.decode(self.encode(numbers, scale), scale, len(numbers))
        return numbers


@dataclass(frozen=True, slots=True)
class Float32(Values):
    """Numbers as they are.

    Cost: 4 bytes a number, no error.
    """

    name: ClassVar[str] = "float32"
    width: ClassVar[int] = 4

    def scale(self, numbers: Numbers) -> int:
        """Return 0."""
        return 0

    def encode(self, numbers: Numbers, scale: int) -> bytes:
        """Return the bytes, little-endian."""
        return numbers.astype("<f4").tobytes()

    def decode(self, body: bytes, scale: int, count: int) -> Numbers:
        """Return the numbers."""
        return np.frombuffer(body, "<f4", count).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Float16(Values):
    """Half-precision numbers times a power of two that the message says once.

        x = 2^s h,   s = the least with max |x| < 2^(s + 15)

    Relative error at most 2^-11 of numbers down to 2^-28 of the greatest, below that 2^-39 of the greatest. Tuned
    coefficients are sums of slopes times a learning rate, which plain float16 would round to nothing.

    Cost: 2 bytes a number. Entropy coding was tried and left out: random mantissas do not shrink.
    """

    name: ClassVar[str] = "float16"
    width: ClassVar[int] = 2

    def scale(self, numbers: Numbers) -> int:
        """Return s."""
        greatest = float(np.fmax.reduce(np.abs(numbers), initial=0.0))
        if not 0 < greatest < math.inf:
            return 0
        return max(-128, min(127, math.frexp(greatest)[1] - TOP))

    def encode(self, numbers: Numbers, scale: int) -> bytes:
        """Return the bytes, little-endian, rounded to the nearest, ties to even."""
        with np.errstate(over="ignore"):
            return np.ldexp(numbers.astype(np.float64), -scale).astype("<f2").tobytes()

    def decode(self, body: bytes, scale: int, count: int) -> Numbers:
        """Return the numbers."""
        halves = np.frombuffer(body, "<f2", count).astype(np.float64)
        with np.errstate(over="ignore"):
            return np.ldexp(halves, scale).astype(np.float32)
