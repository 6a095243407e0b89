"""A run along fresh directions on the wire: the coefficients of the rounds that the receiver has missed."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.part import FACTOR, FRESH, STALE, by_name, slopes_as
from edgetune.core.update import Projected, Update
from edgetune.wire.codec import Codec
from edgetune.wire.kinds import VALUES
from edgetune.wire.known import Known
from edgetune.wire.values import Float32, Numbers, Values

COUNT, DEVICE = struct.Struct("<I"), struct.Struct("<I")
EVERYBODY = 0
"""The device whose directions stand for those of all."""
Said = list[tuple[int, Numbers]]
"""A round: by device, a number for each different direction of its steps, NaN where none counted."""


@dataclass(frozen=True, slots=True)
class Log(Codec):
    """A codec for the steps of all rounds, without those that the receiver holds.

        for every missed round:  uint32 n, then n times  uint32 device, numbers
        directions shared:       for every missed round  numbers

    The numbers are the coefficients (float32) of a device's different directions in the order of its steps, NaN where a
    step did not count; devices of which none did are left out. Seeds follow from the run's seed, round and device.
    If steps are slopes times one factor a round, which follows from how many there are, the slopes travel as they came:

        int8 scale, t x value;   coefficient = float32(factor(n)) float32(value)

    Args:
        levels: how the slopes came; None for coefficients.
    Cost: 4 bytes a step of the rounds that were missed (or a slope's width, and one), 4 a device; a newcomer receives
        all.
    Source: Li et al. 2024, arXiv:2405.15861 (DeComFL): devices pull the rounds that they missed.
    """

    levels: Values | None = None
    relative: ClassVar[bool] = True
    name: ClassVar[str] = "log"
    options: ClassVar[Mapping[str, str]] = {"down_values": "levels"}

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "a log of steps"

    @property
    def needs(self) -> frozenset[str]:
        """Directions that no later step moves again; for slopes, such ones and their factor."""
        of_levels = {FACTOR, slopes_as(self.levels.name)} if self.levels else set()
        return frozenset({FRESH} | of_levels)

    @property
    def refuses(self) -> frozenset[str]:
        """Steps of a device that an earlier round asked: a round's entries are of those whom it asked itself."""
        return frozenset({STALE})

    def settings(self) -> dict[str, Any]:
        """Return the option of this codec."""
        return {"down_values": (self.levels or Float32()).name}

    def with_option(self, option: str, value: object) -> Log:
        """Return the codec with numbers written otherwise, by name; float32 is that of coefficients."""
        kind = by_name(str(value), VALUES, "way to write values")
        return replace(self, levels=None if kind is Float32 else kind())

    def encode(self, update: Update, known: Known) -> bytes:
        """Return the bytes.

        Raises:
            DataError: if the update is dense, its directions are not those of the rounds in their order, or a
                coefficient is none that slopes give.
        """
        held = known.held or Projected.none()
        if not (isinstance(update, Projected) and isinstance(held, Projected) and update.goes_on_from(held)):
            raise DataError("a log holds steps along directions, after those that the receiver has")
        rest, said, place = update.after(len(held.keys)), list[bytes](), 0
        for round in range(known.since + 1, known.round + 1):
            told: Said = []
            for device in (EVERYBODY,) if known.shared else known.asked(round):
                numbers = _taken(rest, place, known.keys_of(round, device))
                place += _counted(numbers)
                told.append((device, numbers))
            said.append(self._write(told, known))
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
                told, place = self._read(body, place, round, known)
                asked[round] = [device for device, _ in told]
                for device, numbers in told:
                    counts = ~np.isnan(numbers)
                    found.append(Projected(_different(known, round, device)[counts], numbers[counts]))
        except (struct.error, ValueError) as error:
            raise DigestError(f"not a log of rounds {known.since + 1} to {known.round}") from error
        update = Projected.chain(found)
        devices = all(one == sorted(set(one)) for one in asked.values())
        if not devices or place != len(body) or not self._writes(update, known, asked, body):
            raise DigestError("this log is written as no server writes it")
        return update

    def _write(self, told: Said, known: Known) -> bytes:
        """Return a round."""
        factor = np.float32(known.factor(sum(_counted(numbers) for _, numbers in told)))
        if known.shared:
            return self._numbers(told[0][1], factor)
        said = [
            DEVICE.pack(device) + self._numbers(numbers, factor)
            for device, numbers in told
            if _counted(numbers)
        ]
        return COUNT.pack(len(said)) + b"".join(said)

    def _numbers(self, numbers: Numbers, factor: np.float32) -> bytes:
        """Return coefficients, or the slopes that they are of."""
        if self.levels is None:
            return numbers.astype("<f4").tobytes()
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            slopes = self.levels.settle((numbers / factor).astype(np.float32))
            if not np.array_equal((slopes * factor).astype(np.float32), numbers, equal_nan=True):
                raise DataError(f"these steps are not {self.levels.name} slopes times {factor:g}")
        return self.levels.write(slopes)

    def _read(self, body: bytes, place: int, round: int, known: Known) -> tuple[Said, int]:
        """Return a round, and where it ends."""
        count = 1
        if not known.shared:
            (count,) = COUNT.unpack_from(body, place)
            place += COUNT.size
        told: Said = []
        for _ in range(count):
            device = EVERYBODY
            if not known.shared:
                (device,) = DEVICE.unpack_from(body, place)
                place += DEVICE.size
            many = len(_different(known, round, device))
            if self.levels is None:
                numbers = np.frombuffer(body, "<f4", many, place).astype(np.float32)
                place += numbers.nbytes
            else:
                numbers, place = self.levels.read(body, many, place)
            told.append((device, numbers))
        if self.levels is not None:
            factor = np.float32(known.factor(sum(_counted(numbers) for _, numbers in told)))
            with np.errstate(over="ignore"):
                told = [(device, (numbers * factor).astype(np.float32)) for device, numbers in told]
        return told, place

    def _writes(self, update: Projected, known: Known, asked: dict[int, list[int]], body: bytes) -> bool:
        try:
            return self.encode(update, replace(known, asked=asked.__getitem__)) == body
        except DataError:
            return False


def _counted(numbers: Numbers) -> int:
    """Return how many of them are numbers."""
    return int((~np.isnan(numbers)).sum())


def _different(known: Known, round: int, device: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the different directions of a device's steps in a round, in their order."""
    return np.array(list(dict.fromkeys(known.keys_of(round, device))), np.int64)


def _taken(rest: Projected, place: int, keys: Sequence[int]) -> Numbers:
    """Return the coefficients of a device's directions, NaN for those that are not next in the update."""
    different = list(dict.fromkeys(keys))
    numbers = np.full(len(different), np.nan, np.float32)
    for index, key in enumerate(different):
        if place < len(rest.keys) and rest.keys[place] == key:
            numbers[index] = rest.coefficients[place]
            place += 1
    return numbers
