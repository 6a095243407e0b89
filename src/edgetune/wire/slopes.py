"""The slope of every step of a device on the wire, in the order of its steps."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import EVERY_SLOPE, LINEAR, SLOPES, by_name, slopes_as
from edgetune.core.update import Projected, Update
from edgetune.wire.codec import Codec
from edgetune.wire.kinds import VALUES
from edgetune.wire.known import Known
from edgetune.wire.values import Float32, Values
from edgetune.wire.varint import read_steps, write_steps

COUNT = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Slopes(Codec):
    """A codec for slopes, from which whoever knows the directions takes the steps.

        int8 scale, n x value:  one for every direction of every step; the value that is no number where none counted

    Where a device chooses its directions among more, those that counted, by their ascending places:

        uint32 n, n x place less the one before less one, seven bits a byte, int8 scale, n x value

    Args:
        values: how numbers are written.
    Cost: 1 byte, and the width of a value a slope; 4 bytes and mostly one a slope more where they are chosen.
    """

    values: Values = field(default_factory=Float32)
    options: ClassVar[Mapping[str, str]] = {"up_values": "values"}

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "sending the slope of every step"

    @property
    def gives(self) -> frozenset[str]:
        """What steps are made of, one by one."""
        return frozenset({EVERY_SLOPE, slopes_as(self.values.name)})

    @property
    def needs(self) -> frozenset[str]:
        """Slopes, and steps that follow from them."""
        return frozenset({SLOPES, LINEAR})

    def settings(self) -> dict[str, Any]:
        """Return the option of this codec."""
        return {"up_values": self.values.name}

    def with_option(self, option: str, value: object) -> Slopes:
        """Return the codec with numbers written otherwise, by name."""
        return replace(self, values=by_name(str(value), VALUES, "way to write values")())

    def encode(self, update: Update, known: Known) -> bytes:
        """Return the bytes.

        Raises:
            DataError: if the update is dense, or its directions are not those of the steps in their order.
        """
        if not isinstance(update, Projected):
            raise DataError("slopes are along directions")
        numbers, places, place = np.full(len(known.keys), np.nan, np.float32), list[int](), 0
        for key, slope in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
            while place < len(known.keys) and known.keys[place] != key:
                place += 1
            if place == len(known.keys):
                raise DataError(f"direction {key} is none of this device's steps, or not in their order")
            numbers[place] = slope
            places.append(place)
            place += 1
        if not known.chosen:
            return self.values.write(numbers)
        said = write_steps(np.array(places, np.int64))
        return COUNT.pack(len(places)) + said + self.values.write(numbers[places])

    def decode(self, body: bytes, known: Known) -> Projected:
        """Return the slopes that counted, in the order of the steps.

        Raises:
            DigestError: if there are not as many numbers as directions, or `encode` would have written them otherwise.
        """
        if known.chosen:
            return self._chosen(body, known)
        try:
            numbers, end = self.values.read(body, len(known.keys))
        except ValueError as error:
            raise DigestError(f"not the slopes of {len(known.keys)} directions: {error}") from error
        if end != len(body):
            raise DigestError(f"more than the slopes of {len(known.keys)} directions")
        counts = ~np.isnan(numbers)
        return Projected(np.array(known.keys, np.int64)[counts], numbers[counts])

    def _chosen(self, body: bytes, known: Known) -> Projected:
        """Return the slopes of directions that a device chose."""
        wrong = f"not the slopes of at most {known.chosen} of {len(known.keys)} directions"
        count = COUNT.unpack_from(body)[0] if len(body) >= COUNT.size else known.chosen + 1
        if count > known.chosen:
            raise DigestError(wrong)
        ends = list(islice((at for at in range(COUNT.size, len(body)) if body[at] < 0x80), count))
        if len(ends) < count:
            raise DigestError(wrong)
        start = ends[-1] + 1 if count else COUNT.size
        places = read_steps(body[COUNT.size : start], count)
        if places is None or (count and int(places[-1]) >= len(known.keys)):
            raise DigestError(wrong)
        try:
            numbers, end = self.values.read(body, count, start)
        except ValueError as error:
            raise DigestError(f"{wrong}: {error}") from error
        found = Projected(np.array(known.keys, np.int64)[places], numbers)
        if end != len(body) or bool(np.isnan(numbers).any()) or self.encode(found, known) != body:
            raise DigestError(f"{wrong}, as a device writes them")
        return found
