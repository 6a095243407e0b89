"""Pool coefficients on the wire: a whole table, or (index, value) pairs where that is shorter."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.update import Projected, Update

TABLE, PAIRS = 0, 1


@dataclass(frozen=True, slots=True)
class SeedTable:
    """A codec for coefficients of a pool of K directions.

        table: 1 byte tag, K x float32
        pairs: 1 byte tag, uint32 count, count x (uint16 or uint32 index, ascending), count x float32, none of them 0

    An update has one encoding: the shorter form, the table if both are equally long.

    Args:
        size: K; indices take 2 bytes up to K = 65,536, else 4.
    Cost: at most 1 + 4 K bytes; 6 bytes a distinct direction where that is less.
    Source: Qin et al. 2024, arXiv:2312.06353 (8 bytes a pair there).
    """

    size: int

    @property
    def _index(self) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
        return np.dtype("<u2") if self.size <= 1 << 16 else np.dtype("<u4")

    def encode(self, update: Update) -> bytes:
        """Return the shorter of the two forms.

        Raises:
            DataError: if the update is not projected or a key is outside the pool.
        """
        if not isinstance(update, Projected):
            raise DataError("a seed table carries projected updates only")
        merged = update.merged()
        moving = merged.coefficients != 0  # a ledger read from disk names every direction of the pool
        order = np.argsort(merged.keys[moving])
        merged = Projected(merged.keys[moving][order], merged.coefficients[moving][order])
        if len(merged.keys) and not (merged.keys.min() >= 0 and merged.keys.max() < self.size):
            raise DataError(f"a key is outside the pool of {self.size}")
        if 5 + len(merged.keys) * (self._index.itemsize + 4) < 1 + 4 * self.size:
            head = struct.pack("<BI", PAIRS, len(merged.keys))
            return (
                head + merged.keys.astype(self._index).tobytes() + merged.coefficients.astype("<f4").tobytes()
            )
        table = np.zeros(self.size, "<f4")
        table[merged.keys] = merged.coefficients
        return struct.pack("<B", TABLE) + table.tobytes()

    def decode(self, body: bytes, like: Update | None = None) -> Projected:
        """Return the update; `like` plays no part.

        Raises:
            DigestError: if the lengths, tag or indices are impossible, or `encode` would have written it otherwise.
        """
        found = self._read(body)
        if found is None or self.encode(found) != body:
            raise DigestError(f"not a seed table of {self.size} directions")
        return found

    def _read(self, body: bytes) -> Projected | None:
        if body[:1] == bytes([TABLE]) and len(body) == 1 + 4 * self.size:
            table = np.frombuffer(body, "<f4", offset=1)
            return Projected(np.arange(self.size, dtype=np.int64), table.astype(np.float32))
        if body[:1] == bytes([PAIRS]) and len(body) >= 5:
            count, width = int(struct.unpack_from("<I", body, 1)[0]), self._index.itemsize
            if len(body) == 5 + count * (width + 4):
                keys = np.frombuffer(body, self._index, count, 5).astype(np.int64)
                values = np.frombuffer(body, "<f4", count, 5 + width * count).astype(np.float32)
                return Projected(keys, values) if not count or int(keys.max()) < self.size else None
        return None
