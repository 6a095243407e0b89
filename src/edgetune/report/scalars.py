"""The curves of a run: numbers by name and step, made of its events alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.core.events import Event, RoundFinished, RunResumed, StageFinished
from edgetune.core.host_events import HostsRound
from edgetune.report.log import Line, newest_run


@dataclass(frozen=True, slots=True)
class Point:
    """One number.

    Args:
        tag: name of its curve; what stands before the first slash groups curves.
        step: the round it belongs to; 0 for a stage, of which there is one number.
        value: may be infinite.
        time: unix seconds.
    """

    tag: str
    step: int
    value: float
    time: float


def points(line: Line) -> list[Point]:
    """Return the numbers of an event; what was not measured (None or NaN) is left out."""
    make = _MAKERS.get(type(line.event))
    if make is None:
        return []
    step, numbers = make(line.event)
    return [
        Point(tag, step, float(value), line.time)
        for tag, value in numbers.items()
        if value is not None and not math.isnan(value)
    ]


def curves(lines: list[Line]) -> list[Point]:
    """Return the numbers of the newest run of a log, each (tag, step) once.

    What was measured twice counts as measured last. Rounds after the one that a resumed run went on from are left out:
    they are done again.
    """
    kept: dict[tuple[str, int], Point] = {}
    for line in newest_run(lines):
        if isinstance(line.event, RunResumed):
            last = line.event.round
            kept = {place: point for place, point in kept.items() if point.step <= last}
        for point in points(line):
            kept.pop((point.tag, point.step), None)  # the order is that of time
            kept[point.tag, point.step] = point
    return list(kept.values())


def places(points: Iterable[Point]) -> set[tuple[str, int]]:
    """Return which numbers these are."""
    return {(point.tag, point.step) for point in points}


_Numbers = tuple[int, Mapping[str, "float | None"]]


def _round(event: RoundFinished) -> _Numbers:
    return event.round, {
        "loss/held_out": event.loss,
        "loss/train": event.train_loss,
        "rouge_l": event.rouge_l,
        "bytes/payload_up": sum(event.payload_up_bytes),
        "bytes/payload_down": sum(event.payload_down_bytes),
        "round/seconds": event.seconds,
        "round/simulated_seconds": event.simulated_seconds,
        "round/peak_memory_bytes": event.peak_memory_bytes,
        "round/replies": len(event.devices),
        "round/refused": len(event.refused),
        "round/unanswered": sum(event.unanswered.values()),
        "round/dropped_steps": event.dropped,
        "round/realised": event.realised,
        "round/aggregation_residual": event.aggregation_residual,
    }


def _hosts(event: HostsRound) -> _Numbers:
    return event.round, {
        "hosts/online": event.online,
        "hosts/registered": event.registered,
        "hosts/accepted": len(event.accepted),
        "hosts/unanswered": len(event.unanswered),
        "hosts/late": len(event.late),
        "hosts/waited_seconds": event.waited_seconds,
        "bytes/transport_up": sum(event.transport_up_bytes.values()),
        "bytes/transport_down": sum(event.transport_down_bytes.values()),
    }


def _stage(event: StageFinished) -> _Numbers:
    numbers: dict[str, float | None] = {
        "loss": event.loss,
        "perplexity": event.perplexity,
        "rouge_l": event.rouge_l,
        "score": event.score,
        "base_style_loss": event.base_style_loss,
        "kl_response": event.kl_response,
        "kl": event.kl,
        "kl_rare": event.kl_rare,
        "top_1": event.top_1,
        "size_bytes": event.size_bytes,
        "peak_memory_bytes": event.peak_memory_bytes,
        "seconds": event.seconds,
    }
    return 0, {f"stage/{event.name}/{what}": value for what, value in numbers.items()}


_MAKERS: dict[type[Event], Callable[[Any], _Numbers]] = {
    RoundFinished: _round,
    HostsRound: _hosts,
    StageFinished: _stage,
}
