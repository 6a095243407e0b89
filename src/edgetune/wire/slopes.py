"""The slope of every step of a device on the wire, in the order of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import EVERY_SLOPE, LINEAR, SLOPES, by_name, slopes_as
from edgetune.core.update import Projected, Update
from edgetune.wire.codec import Codec
from edgetune.wire.kinds import VALUES
from edgetune.wire.known import Known
from edgetune.wire.values import Float32, Values


@dataclass(frozen=True, slots=True)
class Slopes(Codec):
    """A codec for slopes, from which whoever knows the directions takes the steps.

        int8 scale, n x value:  one for every direction of every step; the value that is no number where none counted

    Args:
        values: how numbers are written.
    Cost: 1 byte, and the width of a value a slope.
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
        numbers, place = np.full(len(known.keys), np.nan, np.float32), 0
        for key, slope in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):
            while place < len(known.keys) and known.keys[place] != key:
                place += 1
            if place == len(known.keys):
                raise DataError(f"direction {key} is none of this device's steps, or not in their order")
            numbers[place] = slope
            place += 1
        return self.values.write(numbers)

    def decode(self, body: bytes, known: Known) -> Projected:
        """Return the slopes that counted, in the order of the steps.

        Raises:
            DigestError: if there are not as many numbers as directions, or `encode` would have written them otherwise.
        """
        try:
            numbers, end = self.values.read(body, len(known.keys))
        except ValueError as error:
            raise DigestError(f"not the slopes of {len(known.keys)} directions: {error}") from error
        if end != len(body):
            raise DigestError(f"more than the slopes of {len(known.keys)} directions")
        counts = ~np.isnan(numbers)
        return Projected(np.array(known.keys, np.int64)[counts], numbers[counts])
