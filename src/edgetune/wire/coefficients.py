"""A device's coefficients on the wire: numbers alone, since the directions follow from seed, round and device."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import SLOPES, by_name
from edgetune.core.update import Projected, Update
from edgetune.wire.codec import Codec
from edgetune.wire.kinds import AMOUNTS
from edgetune.wire.known import Known
from edgetune.wire.values import Float32, Values


@dataclass(frozen=True, slots=True)
class Coefficients(Codec):
    """A codec for what one device's steps add up to.

        int8 scale, n x number:  coefficients of different directions in the order of the steps; 0 where none counted

    Args:
        values: how numbers are written.
    Cost: 1 byte, and 2 or 4 a different direction; neither index nor seed travels.
    Source: Qin et al. 2024, arXiv:2312.06353, which sends 8 bytes a step.
    """

    values: Values = field(default_factory=Float32)
    options: ClassVar[Mapping[str, str]] = {"up_values": "values"}

    @property
    def needs(self) -> frozenset[str]:
        """Slopes."""
        return frozenset({SLOPES})

    def settings(self) -> dict[str, Any]:
        """Return the option of this codec."""
        return {"up_values": self.values.name}

    def with_option(self, option: str, value: object) -> Coefficients:
        """Return the codec with numbers written otherwise, by name."""
        return replace(self, values=by_name(str(value), AMOUNTS, "way to write values")())

    def encode(self, update: Update, known: Known) -> bytes:
        """Return the bytes.

        Raises:
            DataError: if the update is dense, or moves a direction that is not among the known ones.
        """
        if not isinstance(update, Projected):
            raise DataError("coefficients are of projected updates")
        places = {key: place for place, key in enumerate(dict.fromkeys(known.keys))}
        numbers, merged = np.zeros(len(places), np.float32), update.merged()
        try:
            numbers[[places[key] for key in merged.keys.tolist()]] = merged.coefficients
        except KeyError as error:
            raise DataError(f"direction {error} is none of this device's steps") from error
        return self.values.write(numbers)

    def decode(self, body: bytes, known: Known) -> Projected:
        """Return the update, without the directions that do not move.

        Raises:
            DigestError: if there are not as many numbers as directions, or `encode` would have written them otherwise.
        """
        keys = np.array(list(dict.fromkeys(known.keys)), np.int64)
        scale = struct.unpack_from("<b", body)[0] if body else 0
        if len(body) != 1 + self.values.length(len(keys), scale):
            raise DigestError(f"not the coefficients of {len(keys)} directions")
        numbers = self.values.decode(body[1:], scale, len(keys))
        found = Projected(keys, numbers)
        if not found.is_finite:  # whoever combines it says so, and whose it is
            return found
        if self.encode(found, known) != body:
            raise DigestError("these coefficients are written as no device writes them")
        return found.moving()
