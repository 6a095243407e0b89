"""What happens between a server and devices in other processes and on other hosts, as kinds of lines of a run's log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from edgetune.core.events import Event


@dataclass(frozen=True, slots=True)
class DeviceSeen(Event):
    """A device came, went, or was turned away."""

    kind: ClassVar[str] = "device"
    device: int | None
    """Its number; None where a stranger was turned away."""
    state: str
    """online, offline or refused."""
    why: str = ""
    """Of what was refused."""


@dataclass(frozen=True, slots=True)
class HostsRound(Event):
    """What a round was like on the network; its `round` event follows."""

    kind: ClassVar[str] = "hosts_round"
    round: int
    online: int
    """Devices that were there when the round closed."""
    registered: int
    """Devices with a key."""
    accepted: list[int]
    """Devices whose replies arrived in time and were handed on, ascending."""
    unanswered: dict[str, str]
    """Why the others' did not, by device: offline, late, not needed, or what the device said."""
    late: list[int] = field(default_factory=list)
    """Devices whose replies to earlier rounds arrived in this one and were refused."""
    transport_up_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes on the socket since the last round that came from each device: requests, encryption, polls, retries."""
    transport_down_bytes: dict[str, int] = field(default_factory=dict)
    """The same of what went to it."""
    waited_seconds: float = 0.0
    """From the first message to the last reply."""


@dataclass(frozen=True, slots=True)
class WorkerLost(Event):
    """A worker process ended before the run did; what it was doing was done again by another process."""

    kind: ClassVar[str] = "worker_lost"
    device: int | None
    """The device that was answering in it; None if none was."""
    code: int | None
    """How it ended: an exit code, or minus the number of a signal."""
