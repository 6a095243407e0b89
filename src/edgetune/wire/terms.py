"""Directions and coefficients of any origin on the wire: those that the receiver has not."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import FRESH
from edgetune.core.update import Projected, Stepped, Update
from edgetune.wire.codec import Codec
from edgetune.wire.known import Known

LAST = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Terms(Codec):
    """A codec for a sum of directions of which a round does not say which they are.

        n x int64 seed, n x float32 coefficient:  the terms after those that the receiver holds
        uint32:  how many terms the last step took, where the state says so

    For methods whose server takes the steps of several rounds at once, or leaves some out; `Log` is a third of it where
    a round's steps are taken in that round.

    Cost: 12 bytes a term, and 4.
    """

    relative: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "a list of terms"

    @property
    def needs(self) -> frozenset[str]:
        """Directions that no later step moves again."""
        return frozenset({FRESH})

    def encode(self, update: Update, known: Known) -> bytes:
        """Return the bytes.

        Raises:
            DataError: if the update is dense, or does not go on from what the receiver holds.
        """
        held = known.held or Projected.none()
        if not (isinstance(update, Projected) and isinstance(held, Projected) and update.goes_on_from(held)):
            raise DataError("terms are along directions, after those that the receiver has")
        rest = update.after(len(held.keys))
        mark = LAST.pack(update.last) if isinstance(update, Stepped) else b""
        return rest.keys.astype("<i8").tobytes() + rest.coefficients.astype("<f4").tobytes() + mark

    def decode(self, body: bytes, known: Known) -> Projected:
        """Return all terms, those that the receiver held first.

        Raises:
            DigestError: if the length is impossible, a seed is negative or repeated, or a step took none or too many.
        """
        held, (count, rest) = known.held or Projected.none(), divmod(len(body), 12)
        if not isinstance(held, Projected) or rest not in (0, LAST.size):
            raise DigestError("not a list of terms")
        keys = np.frombuffer(body, "<i8", count).astype(np.int64)
        update = held + Projected(keys, np.frombuffer(body, "<f4", count, 8 * count).astype(np.float32))
        ordered = np.sort(update.keys)
        if (count and int(keys.min()) < 0) or bool((ordered[1:] == ordered[:-1]).any()):
            raise DigestError("a term is there twice, or of no direction")
        if not rest:
            return update
        (last,) = LAST.unpack_from(body, 12 * count)
        if not 0 < last <= len(update.keys):
            raise DigestError(f"a step of {last} terms, of {len(update.keys)}")
        return Stepped(update.keys, update.coefficients, last)
