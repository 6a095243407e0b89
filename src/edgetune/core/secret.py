"""Randomness that nobody may know: the one exception to the rule that every draw follows from a seed.

Who knows a seed can subtract noise that was drawn from it, and knows which records a step took; neither hides anything
then. What is drawn here comes from the operating system and is not to be had again.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

SUMMED = 4
"""Normal variables that one is a sum of: the low bits of a single one would tell the logarithm that it came from."""


def uniform(count: int) -> npt.NDArray[np.float64]:
    """Return float64 [count], multiples of 2^-53 above 0 and up to 1."""
    bits = np.frombuffer(os.urandom(8 * count), np.uint64) >> np.uint64(11)
    return np.asarray((bits.astype(np.float64) + 1) * 2.0**-53)


def normal(count: int) -> npt.NDArray[np.float64]:
    """Return float64 [count] of mean 0 and variance 1.

        n = sqrt(-2 log u) cos(2 pi v),   each the sum of four over two

    Cost: 64 bytes from the operating system a number, about a microsecond.
    Source: Box and Muller 1958; sums of several after Holohan and Braghin 2021, arXiv:2107.10138.
    """
    u, v = uniform(2 * SUMMED * count).reshape(2, SUMMED, count)
    each = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
    return np.asarray(each.sum(axis=0) / np.sqrt(SUMMED))
