"""A device that is slower than the others: it is not sent after rounds that are over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import count

import pytest

from edgetune.federation.hands import Task
from edgetune.federation.pipes import Message
from edgetune.hosts.envelope import seal, unseal
from edgetune.hosts.kinds import OPEN, OPENED, REPLY
from edgetune.hosts.link import Carried
from edgetune.hosts.remote import Remote
from edgetune.hosts.waiting import Patience
from edgetune.wire import DOWN, Frame

QUICK, SLOW = 0, 1


class Queues:
    """A link whose quick device answers at once; the slow one when the test says so, a message at a time."""

    def __init__(self) -> None:
        self._number = count()
        self.waiting: dict[str, Message] = {}
        self.working: list[tuple[str, Message]] = []
        self._said: dict[str, bytes] = {}

    def sessions(self) -> Mapping[int, str]:
        return {QUICK: "here", SLOW: "here"}

    def send(self, device: int, message: bytes) -> str:
        ticket, said = str(next(self._number)), unseal(message)
        if said.kind == OPEN:
            self._said[ticket] = seal(Message(OPENED, {"examples": 5}))
        elif device == QUICK:
            self._said[ticket] = seal(Message(REPLY, {}, b"quick"))
        else:
            self.waiting[ticket] = said
        return ticket

    def fetch(self) -> int:
        """Let the slow device take its next message; returns the round it is of."""
        ticket = next(iter(self.waiting))
        self.working.append((ticket, self.waiting.pop(ticket)))
        return int(self.working[-1][1].head["round"])

    def finish(self) -> None:
        """Let the slow device reply to what it has."""
        ticket, _ = self.working.pop()
        self._said[ticket] = seal(Message(REPLY, {}, b"slow"))

    def replies(self, tickets: Collection[str]) -> dict[str, bytes]:
        return {one: self._said.pop(one) for one in tickets if one in self._said}

    def forget(self, tickets: Collection[str]) -> None:
        for one in tickets:
            self.waiting.pop(one, None)

    def withdraw(self, tickets: Collection[str]) -> set[str]:
        found = {one for one in tickets if one in self.waiting}
        self.forget(found)
        return found

    def carried(self) -> dict[int, Carried]:
        return {}

    def turned_away(self) -> list[tuple[int | None, str]]:
        return []


@pytest.fixture
def link() -> Queues:
    return Queues()


@pytest.fixture
def remote(link: Queues) -> Remote:
    """Return a server that asks both devices and closes a round with one reply."""
    made = Remote(link, [QUICK, SLOW], Patience(1, 1, 60), listener=lambda event: None, changed=lambda: None,
                  known={})  # fmt: skip
    made.open(Message(OPEN, {}))
    made.wait(2)
    return made


def tasks(round: int) -> list[Task]:
    payload = Frame(DOWN, b"m" * 8, b"b" * 8, round, b"state").encode()
    return [Task(id, payload, round - 1) for id in (QUICK, SLOW)]


def test_of_ten_rounds_a_slow_device_has_the_one_it_works_on_and_no_backlog(
    link: Queues, remote: Remote
) -> None:
    assert remote.answer(tasks(1)) == {QUICK: b"quick"}
    assert link.waiting == {}, "a round that is over is taken back"
    for round in range(2, 11):
        assert remote.answer(tasks(round)) == {QUICK: b"quick"}
    assert link.waiting == {}
    assert remote.unanswered == {SLOW: "not needed"}


def test_a_reply_to_what_was_fetched_before_its_round_was_over_is_late(link: Queues, remote: Remote) -> None:
    fetched = list[int]()

    inner = link.send

    def send(device: int, message: bytes) -> str:
        ticket = inner(device, message)
        if device == SLOW and not fetched:
            fetched.append(link.fetch())
        return ticket

    link.send = send  # type: ignore[method-assign]
    remote.answer(tasks(1))
    assert fetched == [1]
    link.finish()
    told = list[object]()
    remote._listener = told.append
    remote.answer(tasks(2))
    remote.closed(2)
    assert [getattr(one, "late", None) for one in told] == [[SLOW]]
