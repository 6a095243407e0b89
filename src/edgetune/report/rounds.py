"""The rounds of a log, each as done last, and what is counted from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from edgetune.core.events import Event, Failed, RoundFinished, RunFinished, RunResumed, RunStarted, Traffic
from edgetune.core.host_events import HostsRound
from edgetune.report.log import Line

R = TypeVar("R", RoundFinished, HostsRound)


def by_round(kind: type[R], log: Iterable[Event]) -> tuple[R, ...]:
    """Return the events of a kind that has one a round, ascending.

    Args:
        kind: of events with a `round`.
        log: events of one run, in order.

    Returns:
        A round done again after a resume once, as done last; none that came after the checkpoint of a resume.
    """
    found: dict[int, R] = {}
    for event in log:
        if isinstance(event, kind):
            found[event.round] = event
        elif isinstance(event, RunResumed):
            # What came after the checkpoint is lost with the process that did it.
            found = {number: done for number, done in found.items() if number <= event.round}
    return tuple(found[number] for number in sorted(found))


def counted(rounds: tuple[RoundFinished, ...]) -> Traffic:
    """Return the traffic of a run that has not said it itself."""
    return Traffic(
        rounds=len(rounds),
        devices_per_round=max((len(done.devices) for done in rounds), default=0),
        payload_up_bytes=max((size for done in rounds for size in done.payload_up_bytes), default=0),
        payload_down_bytes=max((size for done in rounds for size in done.payload_down_bytes), default=0),
        total_bytes=sum(sum(done.payload_up_bytes) + sum(done.payload_down_bytes) for done in rounds),
    )


def elapsed(lines: Sequence[Line]) -> float:
    """Return the seconds from the first line to the last, without the pauses between attempts."""
    return sum(
        max(0.0, later.time - earlier.time)
        for earlier, later in pairwise(lines)
        if not isinstance(later.event, RunStarted) and not isinstance(earlier.event, (Failed, RunFinished))
    )
