"""Ascending numbers as the differences between them, seven bits a byte."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LONGEST = 4
"""Bytes of a difference at most: a device chooses among at most 2^22 directions, and a pool has fewer."""


def write_steps(places: npt.NDArray[np.int64]) -> bytes:
    """Return the differences less one of ascending numbers from 0 on, least significant bits first.

    d_i = p_i - p_(i - 1) - 1,   p_(-1) = -1;   all bytes of a difference but the last have their highest bit set
    """
    said = bytearray()
    for step in (np.diff(places, prepend=-1) - 1).tolist():
        while step > 0x7F:
            said.append(0x80 | step & 0x7F)
            step >>= 7
        said.append(step)
    return bytes(said)


def read_steps(said: bytes, count: int) -> npt.NDArray[np.int64] | None:
    """Return the numbers, or None if these are not so many differences."""
    steps, step, shift = list[int](), 0, 0
    for byte in said:
        step |= (byte & 0x7F) << shift
        shift += 7
        if shift > 7 * LONGEST:
            return None
        if byte < 0x80:
            steps.append(step)
            step, shift = 0, 0
    if shift or len(steps) != count:
        return None
    return np.cumsum(np.array(steps, np.int64) + 1) - 1
