"""Whoever lets the devices of a round answer, and how one process alone does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Protocol

from edgetune.core.progress import Progress, silent

if TYPE_CHECKING:
    from edgetune.federation.device import Device


@dataclass(frozen=True, slots=True)
class Task:
    """One device's part of a round.

    Args:
        device: its id.
        payload: the server's message.
        turn: how often the device was asked before.
        survey: whether it is asked for the numbers that come before the round, not for a change.
        choice: the message that says which layers it trains, where there is one.
        recall: the message that carries the whole state which this one builds on, for a process that has not seen it;
            None if it builds on the base. It stands for the device's own memory and is no traffic.
    """

    device: int
    payload: bytes
    turn: int
    recall: bytes | None = None
    survey: bool = False
    choice: bytes | None = None

    def done_by(self, device: Device, progress: Progress = silent) -> bytes:
        """Return what the device answers."""
        if self.survey:
            return device.survey(self.payload, self.turn)
        return device.answer(self.payload, self.turn, progress, self.choice)


class Hands(Protocol):
    """Whoever lets devices answer."""

    @property
    def processes(self) -> int:
        """Processes that devices answer in, this one included."""
        ...

    @property
    def beside_bytes(self) -> int:
        """Peak memory of the processes beside this one."""
        ...

    @property
    def unanswered(self) -> Mapping[int, str]:
        """Why devices that were asked last did not answer, by device; nobody where all do."""
        ...

    def answer(self, tasks: list[Task], progress: Progress = silent) -> dict[int, bytes]:
        """Return the replies that devices give; `progress` is told how far each is, by one thread at a time."""
        ...

    def closed(self, round: int) -> None:
        """Take note that a round was closed; nothing of it is on disk yet."""
        ...


class Member(Protocol):
    """A device as its server knows it."""

    @property
    def examples(self) -> int:
        """How many examples it registered with; 0 while that is unknown, then what it first claims is taken."""
        ...


class Party(Hands, Protocol):
    """Hands that a run opens before its first round and closes after its last.

    Args:
        members: all devices by id, where they are on other hosts; None where they are of the run's own making.
    """

    members: Mapping[int, Member] | None

    def __enter__(self) -> Party:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, whatever is under way."""
        ...

    def enlist(self, devices: Mapping[int, Device], start: str = "") -> Hands:
        """Take the devices that answer in this process, and the digest of the run's start, if it has one."""
        ...

    def close(self) -> None:
        """End, whatever is under way."""
        ...


class Alone:
    """Devices answer one after the other, in this process.

    Args:
        devices: by id.
    """

    processes, beside_bytes = 1, 0
    unanswered: Mapping[int, str] = MappingProxyType({})

    def __init__(self, devices: Mapping[int, Device]) -> None:
        self._devices = devices

    def answer(self, tasks: list[Task], progress: Progress = silent) -> dict[int, bytes]:
        """Return the reply of every task's device."""
        return {task.device: task.done_by(self._devices[task.device], progress) for task in tasks}

    def closed(self, round: int) -> None:
        """Do nothing."""
