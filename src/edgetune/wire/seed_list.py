"""Coefficients of fresh directions on the wire: (seed, value) pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.update import Projected, Update


@dataclass(frozen=True, slots=True)
class SeedList:
    """A codec for coefficients of directions named by 63-bit seeds.

        count x int64 seed, count x float32 value

    Cost: 12 bytes a step, both ways; a late joiner receives every step so far.
    """

    def encode(self, update: Update) -> bytes:
        """Return the pairs in their order, which is that of the steps.

        Raises:
            DataError: if the update is not projected.
        """
        if not isinstance(update, Projected):
            raise DataError("a seed list carries projected updates only")
        return update.keys.astype("<i8").tobytes() + update.coefficients.astype("<f4").tobytes()

    def decode(self, body: bytes, like: Update | None = None) -> Projected:
        """Return the update; `like` plays no part.

        Raises:
            DigestError: if the length is impossible, or a seed is negative or repeated.
        """
        count, rest = divmod(len(body), 12)
        keys = np.frombuffer(body, "<i8", count).astype(np.int64)
        ordered = np.sort(keys)
        if rest or (count and int(ordered[0]) < 0) or bool((ordered[1:] == ordered[:-1]).any()):
            raise DigestError("not a list of seeds and coefficients")
        return Projected(keys, np.frombuffer(body, "<f4", count, 8 * count).astype(np.float32))
