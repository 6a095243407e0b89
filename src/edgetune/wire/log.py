"""A run along fresh directions on the wire: the coefficients of the rounds that the receiver has missed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import FRESH
from edgetune.core.update import Projected, Update
from edgetune.wire.codec import Codec
from edgetune.wire.known import Known

COUNT, DEVICE = struct.Struct("<I"), struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Log(Codec):
    """A codec for the steps of all rounds, without those that the receiver holds.

        for every missed round:  uint32 n, then n times  uint32 device, t x float32

    The numbers are the coefficients of a device's t different directions in the order of its steps, NaN where a step
    did not count; devices of which none did are left out. Seeds follow from the run's seed, round and device.

    Cost: 4 bytes a step of the rounds that were missed, 4 a device; a newcomer receives all.
    Source: Li et al. 2024, arXiv:2405.15861 (DeComFL): devices pull the rounds that they missed.
    """

    relative: ClassVar[bool] = True

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "a log of steps"

    @property
    def needs(self) -> frozenset[str]:
        """Directions that no later step moves again."""
        return frozenset({FRESH})

    def encode(self, update: Update, known: Known) -> bytes:
        """Return the bytes.

        Raises:
            DataError: if the update is dense, or its directions are not those of the rounds in their order.
        """
        held = known.held or Projected.none()
        if not (isinstance(update, Projected) and isinstance(held, Projected) and update.goes_on_from(held)):
            raise DataError("a log holds steps along directions, after those that the receiver has")
        rest, said = update.after(len(held.keys)), list[bytes]()
        place = 0
        for round in range(known.since + 1, known.round + 1):
            entries = list[bytes]()
            for device in known.asked(round):
                numbers = _taken(rest, place, known.keys_of(round, device))
                counted = int((~np.isnan(numbers)).sum())
                place += counted
                entries += [DEVICE.pack(device) + numbers.astype("<f4").tobytes()] if counted else []
            said += [COUNT.pack(len(entries)), *entries]
        if place != len(rest.keys):
            raise DataError(
                f"direction {rest.keys[place]} is none of rounds {known.since + 1} to {known.round}"
            )
        return b"".join(said)

    def decode(self, body: bytes, known: Known) -> Projected:
        """Return all steps, those that the receiver held first.

        Raises:
            DigestError: if the lengths are impossible, or `encode` would have written it otherwise.
        """
        held, asked, place = known.held or Projected.none(), dict[int, list[int]](), 0
        if not isinstance(held, Projected):
            raise DigestError("a log builds on steps along directions")
        found = [held]
        try:
            for round in range(known.since + 1, known.round + 1):
                (count,) = COUNT.unpack_from(body, place)
                place, asked[round] = place + COUNT.size, []
                for _ in range(count):
                    (device,) = DEVICE.unpack_from(body, place)
                    keys = np.array(list(dict.fromkeys(known.keys_of(round, device))), np.int64)
                    numbers = np.frombuffer(body, "<f4", len(keys), place + DEVICE.size).astype(np.float32)
                    place += DEVICE.size + 4 * len(keys)
                    asked[round].append(device)
                    counts = ~np.isnan(numbers)
                    found.append(Projected(keys[counts], numbers[counts]))
        except (struct.error, ValueError) as error:
            raise DigestError(f"not a log of rounds {known.since + 1} to {known.round}") from error
        update = Projected.chain(found)
        devices = all(one == sorted(set(one)) for one in asked.values())
        if not devices or place != len(body) or not self._writes(update, known, asked, body):
            raise DigestError("this log is written as no server writes it")
        return update

    def _writes(self, update: Projected, known: Known, asked: dict[int, list[int]], body: bytes) -> bool:
        try:
            return self.encode(update, replace(known, asked=asked.__getitem__)) == body
        except DataError:
            return False


def _taken(rest: Projected, place: int, keys: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return the coefficients of a device's directions, NaN for those that are not next in the update."""
    different = list(dict.fromkeys(keys))
    numbers = np.full(len(different), np.nan, np.float32)
    for index, key in enumerate(different):
        if place < len(rest.keys) and rest.keys[place] == key:
            numbers[index] = rest.coefficients[place]
            place += 1
    return numbers
