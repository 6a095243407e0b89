"""A pool's coefficients on the wire, and what its directions are drawn by."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import CARRIED
from edgetune.core.update import Projected, Update, Weighed
from edgetune.wire.known import Known
from edgetune.wire.log8 import Log8
from edgetune.wire.table import Table

LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class WeighedTable(Table):
    """A codec for coefficients and amplitudes, both relative to those that the receiver holds.

        uint32 length,   amplitudes as a table of log8 numbers,   coefficients as a table

    Cost: that of the table, 10 bytes, and one for every amplitude that changed (K for a newcomer), with its place.
    Source: Qin et al. 2024, arXiv:2312.06353 (4 bytes a probability there, all of them every time).
    """

    @property
    def gives(self) -> frozenset[str]:
        """Amplitudes at the device."""
        return frozenset({CARRIED})

    def settle(self, update: Update) -> Any:
        """Return coefficients and amplitudes as they arrive."""
        settled = Table.settle(self, update)
        if not isinstance(update, Weighed):
            return settled
        return Weighed(settled.keys, settled.coefficients, Log8().settle(update.amplitudes))

    def encode(self, update: Update, known: Known) -> bytes:
        """Return the bytes.

        Raises:
            DataError: if the update has no amplitudes, or as `Table.encode`.
        """
        if not isinstance(update, Weighed) or len(update.amplitudes) != known.size:
            raise DataError("a weighed table holds coefficients and amplitudes of a pool")
        amplitudes = _AMPLITUDES.encode(
            _plain(update) or Projected.none(), replace(known, held=_plain(known.held))
        )
        return LENGTH.pack(len(amplitudes)) + amplitudes + Table.encode(self, update, known)

    def decode(self, body: bytes, known: Known) -> Projected:
        """Return all K coefficients, with their amplitudes.

        Raises:
            DigestError: as `Table.decode`.
        """
        if len(body) < LENGTH.size:
            raise DigestError("not a weighed table")
        end = LENGTH.size + LENGTH.unpack_from(body)[0]
        held = _plain(known.held)
        amplitudes = _AMPLITUDES.decode(body[LENGTH.size : end], replace(known, held=held)).coefficients
        if not (amplitudes >= 0).all():
            raise DigestError("an amplitude is negative, or no number")
        found = Table(self.values).decode(body[end:], known)
        return Weighed(found.keys, found.coefficients, amplitudes)


_AMPLITUDES = Table(Log8())


def _plain(update: Update | None) -> Projected | None:
    """Return amplitudes as coefficients; None for those of the base."""
    if not isinstance(update, Weighed):
        return None
    return Projected(np.arange(len(update.amplitudes), dtype=np.int64), update.amplitudes)
