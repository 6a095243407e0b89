"""Replies under way in simulated time: each arrives when its device is done, in whichever round that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from edgetune.federation.buffer import Buffer
from edgetune.federation.tickets import State


@dataclass(frozen=True, slots=True, order=True)
class Flying:
    """A reply under way.

    Args:
        arrives: simulated seconds since the run began.
        device: whose it is.
        round: whose message it answers.
        payload: what arrives.
    """

    arrives: float
    device: int
    round: int
    payload: bytes = field(compare=False)


class Flight:
    """What a simulation has sent and not yet received; a network has it in its cables.

    A reply is a function of the message that it answers, so that it is made when the message is sent. It lies here
    until its time has come, and beside the ledger while the run is down.

    Args:
        buffer: of the server.
        deadline: simulated seconds after which a round waits no longer; what comes later counts in later rounds.
        state: what `state` returned before a restart.
    Cost: the bytes of the replies under way, on the disk as well.
    """

    def __init__(
        self, buffer: Buffer, deadline: float = math.inf, state: Mapping[str, torch.Tensor] | None = None
    ) -> None:
        self._buffer, self._deadline = buffer, deadline
        self._clock, self._flying = 0.0, list[Flying]()
        if state:
            self._clock = float(state["clock"])
            data, place = state["replies"].numpy().tobytes(), 0
            times, whose = state["arrives"].tolist(), state["whose"].tolist()
            for arrives, (device, round, length) in zip(times, whose, strict=True):
                self._flying.append(Flying(arrives, device, round, data[place : place + length]))
                place += length

    @property
    def state(self) -> State:
        """Everything that a restart must know.

        `clock` float64 [], `arrives` float64 [n], `whose` int64 [n, 3] (device, round, length), `replies` uint8 [bytes]
        """
        whose = [(one.device, one.round, len(one.payload)) for one in self._flying]
        data = bytearray().join(one.payload for one in self._flying)
        return {
            "clock": torch.tensor(self._clock, dtype=torch.float64),
            "arrives": torch.tensor([one.arrives for one in self._flying], dtype=torch.float64),
            "whose": torch.tensor(whose, dtype=torch.int64).reshape(-1, 3),
            "replies": torch.frombuffer(data, dtype=torch.uint8)
            if data
            else torch.zeros(0, dtype=torch.uint8),
        }

    @property
    def devices(self) -> set[int]:
        """Devices under way."""
        return {one.device for one in self._flying}

    def landed(
        self, replies: Mapping[int, bytes], times: Mapping[int, float], round: int
    ) -> tuple[dict[int, bytes], float]:
        """Let the devices of a round begin, and return what closes it.

        Those that come first count, until the buffer is full of replies that are not too old, nothing more is to come,
        or the deadline is over.

        Args:
            replies: of the devices that were asked now, which no device under way is among.
            times: simulated seconds that each of them takes.
            round: the coming one.

        Returns:
            Replies by device, and the simulated seconds that the round took.
        """
        began, limit = self._clock, self._clock + self._deadline
        self._flying += [
            Flying(began + times[device], device, round, payload) for device, payload in replies.items()
        ]
        self._flying.sort()
        taken, counting = dict[int, bytes](), 0
        while self._flying and counting < self._buffer.size and self._flying[0].arrives <= limit:
            one = self._flying.pop(0)
            taken[one.device] = one.payload
            counting += round - one.round <= self._buffer.oldest
            self._clock = max(self._clock, one.arrives)
        if counting < self._buffer.size and self._deadline < math.inf:
            self._clock = limit
        return dict(sorted(taken.items())), self._clock - began
