"""A link without a network, a clock that only sleeping moves, and devices that are functions."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from edgetune.core.events import Event
from edgetune.core.host_events import DeviceSeen, HostsRound
from edgetune.federation.hands import Task
from edgetune.federation.pipes import Message
from edgetune.hosts.envelope import seal, unseal
from edgetune.hosts.kinds import BYE, OPEN, OPENED, OVER, REPLY
from edgetune.hosts.link import Carried
from edgetune.hosts.remote import Remote
from edgetune.wire import DOWN, Frame

Behaviour = Callable[[Message], "Message | bytes | None"]
"""What a device says to a message of the run; None says nothing."""


def task(device: int, round: int = 1, recall: bytes | None = None) -> Task:
    """Return a device's part of a round."""
    return Task(device, Frame(DOWN, b"m" * 8, b"b" * 8, round, b"state").encode(), round - 1, recall)


def good(number: int, examples: Any = 7) -> Behaviour:
    """Return a device that does what it is asked."""

    def answer(message: Message) -> Message:
        if message.kind == OPEN:
            return Message(OPENED, {"examples": examples})
        return Message(BYE) if message.kind == OVER else Message(REPLY, {}, b"change of %d" % number)

    return answer


def seen(told: Sequence[Event]) -> list[tuple[int | None, str, str]]:
    return [(one.device, one.state, one.why) for one in told if isinstance(one, DeviceSeen)]


def closed(remote: Remote, told: list[Event], round: int = 1) -> HostsRound:
    remote.closed(round)
    last = told[-1]
    assert isinstance(last, HostsRound)
    return last


def opening(then: Behaviour, examples: Any = 7) -> Behaviour:
    """Return a device that opens, and answers everything else in its own way."""
    return lambda said: Message(OPENED, {"examples": examples}) if said.kind == OPEN else then(said)


@dataclass
class Device:
    """A device of the link: what it says, how long that takes, and every message that it got."""

    behaviour: Behaviour
    seconds: float = 0.0
    got: list[Message] = field(default_factory=list)

    def kinds(self) -> list[str]:
        """Return the kinds of the messages that it got."""
        return [one.kind for one in self.got]


class MemoryLink:
    """Carries messages between a server and devices of this process (`hosts.link.Link`); it is the clock as well."""

    def __init__(self) -> None:
        self.now, self._order = 0.0, count()
        self.devices = dict[int, Device]()
        self.there = dict[int, str]()
        self.away = list[tuple[int | None, str]]()
        self.bytes = dict[int, Carried]()
        self.forgotten = list[str]()
        self._due = list[tuple[float, int, Callable[[], None]]]()
        self._open, self._said = dict[str, int](), dict[str, bytes]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let time pass, and happen what is due in it."""
        assert self.now < 1e5, "this waits for ever"
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            self.now, _, act = heapq.heappop(self._due)
            act()
        self.now = until

    def at(self, seconds: float, act: Callable[[], object]) -> None:
        """Let something happen at a time, or now if that is past."""
        heapq.heappush(self._due, (max(seconds, self.now), next(self._order), lambda: (act(), None)[1]))

    def add(self, number: int, behaviour: Behaviour | None = None, seconds: float = 0.0) -> Device:
        """Connect a device."""
        device = self.devices[number] = Device(behaviour or good(number), seconds)
        self.come(number)
        return device

    def come(self, number: int) -> None:
        """Let a device come, once more if it was there: what it had of messages is lost with its process."""
        self.there[number] = f"session {next(self._order)}"

    def go(self, number: int) -> None:
        """Let a device go."""
        del self.there[number]

    def sessions(self) -> Mapping[int, str]:
        return dict(self.there)

    def send(self, device: int, message: bytes) -> str:
        ticket, session = f"ticket {next(self._order)}", self.there[device]
        self._open[ticket] = device

        def arrive() -> None:
            if self.there.get(device) != session or ticket not in self._open:
                return
            one = self.devices[device]
            one.got.append(unseal(message))
            said = one.behaviour(one.got[-1])
            if said is not None:
                body = said if isinstance(said, bytes) else seal(said)
                self.at(self.now + one.seconds, lambda: self.say(ticket, session, body))

        self.at(self.now, arrive)
        return ticket

    def say(self, ticket: str, session: str, body: bytes) -> None:
        """Let a reply arrive, unless its device is gone or the message was taken back."""
        device = self._open.get(ticket)
        if device is not None and self.there.get(device) == session:
            self._said[ticket] = body

    def replies(self, tickets: Collection[str]) -> dict[str, bytes]:
        found = {one: self._said.pop(one) for one in tickets if one in self._said}
        for one in found:
            del self._open[one]
        return found

    def forget(self, tickets: Collection[str]) -> None:
        self.forgotten += tickets
        for one in tickets:
            self._open.pop(one, None)
            self._said.pop(one, None)

    def carried(self) -> dict[int, Carried]:
        return dict(self.bytes)

    def turned_away(self) -> list[tuple[int | None, str]]:
        found, self.away = self.away, []
        return found

    def under_way(self) -> Iterator[int]:
        """Yield the devices whose messages nobody has answered or taken back."""
        yield from self._open.values()
