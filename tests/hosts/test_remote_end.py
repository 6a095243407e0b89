"""What a server of devices on other hosts counts, and how it says goodbye."""

from __future__ import annotations

from collections.abc import Callable

from memory_link import MemoryLink, closed, opening, task

from edgetune.core.events import Event
from edgetune.core.host_events import HostsRound
from edgetune.hosts.kinds import OPEN, OVER
from edgetune.hosts.link import Carried
from edgetune.hosts.remote import FAREWELL, Remote

Make = Callable[..., Remote]


def test_bytes_of_a_round_are_those_since_the_last_one(
    link: MemoryLink, make: Make, told: list[Event]
) -> None:
    link.add(0)
    remote = make(1, 1)
    for round, (up, down) in enumerate(((100, 1000), (150, 1200)), start=1):
        link.bytes = {0: Carried(up, down)}
        remote.answer([task(0, round)])
        closed(remote, told, round)
    rounds = [one for one in told if isinstance(one, HostsRound)]
    assert [one.transport_up_bytes for one in rounds] == [{"0": 100}, {"0": 50}]
    assert [one.transport_down_bytes for one in rounds] == [{"0": 1000}, {"0": 200}]


def test_the_end_is_told_to_those_that_are_there_and_waits_for_nobody_for_long(
    link: MemoryLink, make: Make
) -> None:
    devices = [link.add(0), link.add(1), link.add(2, opening(lambda said: None))]
    remote = make(3, 2, seconds=5)
    link.go(1)
    remote.answer([task(id) for id in range(3)])
    link.come(1)
    begin = link.now
    remote.close()
    assert [one.kinds()[-1] for one in devices] == [OVER] * 3
    assert devices[1].kinds() == [OPEN, OVER], "a run that is over is told to nobody as one that begins"
    assert FAREWELL <= link.now - begin < FAREWELL + 0.1
    assert sorted(link.under_way()) == [2]
