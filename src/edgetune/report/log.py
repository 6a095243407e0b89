"""Lines of `events.jsonl` as typed events, reduced to those that count for the newest run in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from typing import Any

from edgetune.core.events import (
    DataPrepared,
    Event,
    ExportPlanned,
    ExportRefused,
    Failed,
    LayerCompressed,
    Precision,
    RoundFinished,
    RunFinished,
    RunResumed,
    RunStarted,
    Sample,
    StageFinished,
    Traffic,
    Verified,
)

_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        RunStarted,
        DataPrepared,
        ExportPlanned,
        ExportRefused,
        RunResumed,
        Precision,
        RoundFinished,
        LayerCompressed,
        StageFinished,
        Sample,
        Traffic,
        Verified,
        Failed,
        RunFinished,
    )
}


@dataclass(frozen=True, slots=True)
class Line:
    """One event and when it was written (unix seconds; 0 if the line does not say)."""

    time: float
    event: Event


def typed(lines: Iterable[dict[str, Any]]) -> list[Line]:
    """Turn log lines into events.

    Args:
        lines: dictionaries as `core.events.read_events` yields them.

    Returns:
        The events in order; lines of an unknown kind, or without a field that has no default, are left out,
        so that a log written by another version is still readable.
    """
    found = []
    for line in lines:
        event = _event(line)
        if event is not None:
            found.append(Line(float(line.get("time", 0.0)), event))
    return found


def newest_run(lines: list[Line]) -> list[Line]:
    """Keep the newest run of a log: the last fresh start and every attempt that resumed it.

    Args:
        lines: all events of one log, in order.

    Returns:
        The lines from the last `RunStarted` that began something new; all of them if there is none.
    """
    starts = [i for i, line in enumerate(lines) if isinstance(line.event, RunStarted)]
    begin = 0
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=False):
        attempt = [line.event for line in lines[start:end]]
        resumed = any(isinstance(event, RunResumed) for event in attempt)
        # A resume measures the base first: an attempt that ended there must not hide the rounds before it.
        brief = not any(isinstance(event, RoundFinished) for event in attempt)
        if not resumed and not (brief and _same_run(lines[begin].event, attempt[0])):
            begin = start
    return lines[begin:]


def _same_run(one: Event, other: Event) -> bool:
    return (
        isinstance(one, RunStarted)
        and isinstance(other, RunStarted)
        and (one.config, one.method, one.base_digest, one.seed)
        == (other.config, other.method, other.base_digest, other.seed)
    )


def _event(line: dict[str, Any]) -> Event | None:
    kind = _KINDS.get(str(line.get("event")))
    if kind is None:
        return None
    known = fields(kind)
    needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    if not needed <= line.keys():
        return None
    build: Callable[..., Event] = kind
    return build(**{f.name: line[f.name] for f in known if f.name in line})
