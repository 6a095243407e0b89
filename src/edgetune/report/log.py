"""Lines of `events.jsonl` as typed events, reduced to those that count for the newest run in the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from edgetune.core.compression_events import Allotted, Calibrated, Pruned
from edgetune.core.errors import DataError
from edgetune.core.events import (
    DataPrepared,
    Event,
    Failed,
    LayerCompressed,
    Precision,
    Privacy,
    RateFound,
    RoundFinished,
    RunFinished,
    RunResumed,
    RunStarted,
    Sample,
    StageFinished,
    Stopped,
    Traffic,
)
from edgetune.core.export_events import ExportPlanned, ExportRefused, Verified
from edgetune.core.host_events import DeviceSeen, HostsRound
from edgetune.report.checked import FieldError, Read, reader

LATEST = 253402300799.0
"""Unix seconds of the last second of the year 9999, beyond which there are no dates."""

_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        RunStarted,
        DataPrepared,
        ExportPlanned,
        ExportRefused,
        RunResumed,
        Precision,
        Privacy,
        RateFound,
        DeviceSeen,
        HostsRound,
        RoundFinished,
        Calibrated,
        Allotted,
        Pruned,
        LayerCompressed,
        StageFinished,
        Stopped,
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


def typed(lines: Iterable[dict[str, Any]], where: Path | None = None) -> list[Line]:
    """Turn log lines into events.

    Args:
        lines: dictionaries as `core.event_log.read_events` yields them.
        where: their file, for errors.

    Returns:
        The events in order; lines of an unknown kind, or without a field that has no default, are left out,
        so that a log written by another version is still readable.

    Raises:
        DataError: if a line is no table, or a field is of another type than its event declares; names both.
    """
    found = []
    for number, line in enumerate(lines, start=1):
        if not isinstance(line, dict):
            raise DataError(f"line {number} is not an event", where=where)
        try:
            event = _event(line)
            if event is not None:
                found.append(Line(_time(line.get("time", 0.0)), event))
        except FieldError as error:
            raise DataError(f"line {number} is damaged: {error}", where=where) from error
    return found


def _time(value: Any) -> float:
    try:
        seconds: float = reader(float)(value)
    except FieldError as error:
        raise FieldError(f"time is {error}") from error
    if not 0 <= seconds <= LATEST:
        raise FieldError("time is out of range")
    return seconds


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
    readers, needed = _READERS[kind]
    if not needed <= line.keys():
        return None
    values = {}
    for name, read in readers.items():
        if name in line:
            try:
                values[name] = read(line[name])
            except FieldError as error:
                raise FieldError(f"{name} of {kind.kind} is {error}") from error
    build: Callable[..., Event] = kind
    return build(**values)


def _readers(kind: type[Event]) -> tuple[dict[str, Read], set[str]]:
    """Return what reads each field of an event, and the fields that must be there."""
    hints, known = get_type_hints(kind), fields(kind)
    needed = {one.name for one in known if one.default is MISSING and one.default_factory is MISSING}
    return {one.name: reader(hints[one.name]) for one in known}, needed


_READERS = {kind: _readers(kind) for kind in _KINDS.values()}
