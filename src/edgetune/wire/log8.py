"""Numbers in a byte: a sign and one of 127 powers of the sixth root of two, zero, and no value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgetune.wire.values import Numbers, Values

SIXTHS = (
    1.0,
    1.122462048309373,
    1.2599210498948732,
    1.4142135623730951,
    1.5874010519681994,
    1.7817974362806785,
)
"""2^(k / 6), written out: no machine's power function has a say in it."""
ZERO, NO_VALUE, HALF, CENTRE = 0, 128, 128, 64
LOWEST, HIGHEST = -40, 60
"""Scales: what is larger is refused anyway, and products of smaller numbers with a rate would be subnormal."""


def _levels() -> npt.NDArray[np.float64]:
    """Return 0 and the 127 positive levels, ascending, each a float32."""
    places = [code - CENTRE for code in range(1, HALF)]
    return np.array([0.0, *(math.ldexp(float(np.float32(SIXTHS[j % 6])), j // 6) for j in places)])


LEVELS = _levels()
BETWEEN = (LEVELS[1:] + LEVELS[:-1]) / 2
"""From where on the next level is nearer."""
MOST = (LEVELS[-1] + 2 * LEVELS[-6]) / 2
"""From where on the next scale is taken: midway to the level that would follow the last."""


@dataclass(frozen=True, slots=True)
class Log8(Values):
    """A byte a number, all 256 codes in use.

        x = 2^s l(c),   l(0) = 0,   l(c) = 2^((c - 64) / 6) for c = 1 ... 127,   l(c + 128) = -l(c),   128: no value

    The scale s is the least one that holds the greatest number. Relative error at most 5.8 % (half of the step
    2^(1/6)) of numbers down to 2^-21 of the greatest, which below that become 0 or the smallest level. Numbers of
    2^-50 and less become 0, those beyond 2^70 are cut, and refused as absurd. Levels are float32 constants times
    powers of two: the same bits on every machine.

    Cost: 1 byte a number.
    Source: Zelikman et al. 2023, arXiv:2306.10015, whose sign and 255 levels take nine bits and are never sent.
    """

    name: ClassVar[str] = "log8"
    width: ClassVar[int] = 1

    def scale(self, numbers: Numbers) -> int:
        """Return s."""
        greatest = float(np.fmax.reduce(np.abs(numbers), initial=0.0))
        if greatest == 0.0:
            return 0
        if greatest == math.inf:
            return HIGHEST
        scale = math.frexp(greatest / MOST)[1]  # greatest / MOST is in [2^(scale - 1), 2^scale)
        return max(LOWEST, min(HIGHEST, scale))

    def encode(self, numbers: Numbers, scale: int) -> bytes:
        """Return the codes of the nearest levels; of two that are equally near the greater."""
        sizes = np.ldexp(np.abs(numbers).astype(np.float64), -scale)
        codes = np.searchsorted(BETWEEN, sizes, side="right")
        codes = np.where((numbers < 0) & (codes > 0), codes + HALF, codes)
        return np.where(np.isnan(numbers), NO_VALUE, codes).astype(np.uint8).tobytes()

    def decode(self, body: bytes, scale: int, count: int) -> Numbers:
        """Return the levels."""
        codes = np.frombuffer(body, np.uint8, count)
        sizes = np.ldexp(LEVELS[codes % HALF], scale)
        with np.errstate(over="ignore"):  # under a scale that `encode` never takes
            numbers = np.where(codes > HALF, -sizes, sizes).astype(np.float32)
        numbers[codes == NO_VALUE] = np.nan
        return numbers
