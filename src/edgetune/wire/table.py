"""A pool's coefficients on the wire: those that the receiver has not, in the shortest of three forms."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import POOL, by_name
from edgetune.core.update import Projected, Update
from edgetune.wire.codec import Codec
from edgetune.wire.kinds import FLOATS
from edgetune.wire.known import Known
from edgetune.wire.values import Float32, Numbers, Values
from edgetune.wire.varint import read_steps, write_steps

ALL, BITMAP, STEPS = 0, 1, 2
HEAD = struct.Struct("<BbI")
"""Form, scale, number of coefficients that follow."""
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Table(Codec):
    """A codec for the K coefficients of a pool, relative to those that the receiver holds.

        uint8 form, int8 scale, uint32 n,   which of them change,   n x number: their new values

    Which of them change is said by nothing if all do, by K bits, or by n differences of their places, 7 bits a byte;
    the shortest form is taken, the first of equal ones. New values replace old ones, so that who was away and who was
    there hold the same bits. Of a newcomer all coefficients are 0.

    Args:
        values: how numbers are written; the server's own coefficients are rounded so too.
    Cost: at most 6 + 4 K bytes (2 K in float16); of m devices with tau steps a round at most K / 8 + 4 m tau.
    Source: Qin et al. 2024, arXiv:2312.06353 (always K float32 there).
    """

    values: Values = field(default_factory=Float32)
    relative: ClassVar[bool] = True
    options: ClassVar[Mapping[str, str]] = {"down_values": "values"}

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "a table of coefficients"

    @property
    def needs(self) -> frozenset[str]:
        """A pool."""
        return frozenset({POOL})

    def settings(self) -> dict[str, Any]:
        """Return the option of this codec."""
        return {"down_values": self.values.name}

    def with_option(self, option: str, value: object) -> Table:
        """Return the codec with numbers written otherwise, by name."""
        return replace(self, values=by_name(str(value), FLOATS, "way to write values")())

    def settle(self, update: Update) -> Any:
        """Return the coefficients as they arrive."""
        if not isinstance(update, Projected):
            raise DataError("a table holds coefficients of directions")
        return Projected(update.keys, self.values.settle(update.coefficients))

    def encode(self, update: Update, known: Known) -> bytes:
        """Return the shortest form of a settled update.

        Raises:
            DataError: if it is dense, or a key is outside the pool.
        """
        new, held = _dense(update, known.size), _dense(known.held or Projected.none(), known.size)
        changed = np.flatnonzero(new.view(np.uint32) != held.view(np.uint32))
        forms = [
            (BITMAP, changed, np.packbits(new.view(np.uint32) != held.view(np.uint32), bitorder="little").tobytes()),
            (STEPS, changed, write_steps(changed)),
            (ALL, np.arange(known.size), b""),
        ]  # fmt: skip
        scale = self.values.scale(new)
        form, places, said = min(
            forms, key=lambda one: (len(one[2]) + len(one[1]) * self.values.width, one[0])
        )
        head = HEAD.pack(form, scale, len(places))
        return head + said + self.values.encode(new[places], scale)

    def decode(self, body: bytes, known: Known) -> Projected:
        """Return all K coefficients.

        Raises:
            DigestError: if the lengths, form or places are impossible, or `encode` would have written it otherwise.
        """
        found = self._read(body, known)
        if found is None or self.encode(found, known) != body:
            raise DigestError(f"not a table of coefficients of {known.size} directions")
        return found

    def _read(self, body: bytes, known: Known) -> Projected | None:
        if len(body) < HEAD.size:
            return None
        form, scale, count = HEAD.unpack_from(body)
        end = len(body) - count * self.values.width
        if count > known.size or end < HEAD.size:
            return None
        places = _places(form, body[HEAD.size : end], count, known.size)
        if places is None or len(places) != count:
            return None
        table = _dense(known.held or Projected.none(), known.size).copy()
        table[places] = self.values.decode(body[end:], scale, count)
        return Projected(np.arange(known.size, dtype=np.int64), table)


def _places(form: int, said: bytes, count: int, size: int) -> Places | None:
    """Return which coefficients a message changes; None if that is no such message."""
    if form == ALL:
        return np.arange(size) if not said and count == size else None
    if form == BITMAP and len(said) == -(-size // 8):
        bits = np.unpackbits(np.frombuffer(said, np.uint8), bitorder="little")
        return np.flatnonzero(bits[:size]) if not bits[size:].any() else None
    places = read_steps(said, count) if form == STEPS else None
    return places if places is not None and (not count or int(places[-1]) < size) else None


def _dense(update: Update, size: int) -> Numbers:
    """Return all K coefficients."""
    if not isinstance(update, Projected):
        raise DataError("a table holds coefficients of directions")
    if len(update.keys) and not (update.keys.min() >= 0 and update.keys.max() < size):
        raise DataError(f"a key is outside the pool of {size}")
    if len(update.keys) == size and bool((update.keys == np.arange(size)).all()):
        return update.coefficients
    merged, table = update.merged(), np.zeros(size, np.float32)
    table[merged.keys] = merged.coefficients
    return table
