"""Trackers: whoever else is told of a run's numbers, beside its log and its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from edgetune.core.errors import ConfigError, OutputError
from edgetune.core.event_log import read_events
from edgetune.core.events import Event, Listener, RunResumed, RunStarted
from edgetune.core.part import by_name
from edgetune.report.log import Line, typed
from edgetune.report.scalars import Point, curves, places, points
from edgetune.report.tensorboard import TensorBoard

WHERE = "--track"


class Tracker(Protocol):
    """A place that curves are written to."""

    def rewrite(self, points: Sequence[Point]) -> None:
        """Put these numbers in place of all that is there.

        Raises:
            OutputError: if they cannot be written.
        """
        ...

    def append(self, points: Sequence[Point]) -> None:
        """Add numbers.

        Raises:
            OutputError: if they cannot be written.
        """
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


TRACKERS: Mapping[str, Callable[[Path, Path], Tracker]] = {"tensorboard": TensorBoard}
"""What makes a tracker, by its name, of its folder and the run's log."""


class Tracked:
    """A listener that keeps a tracker equal to the newest run of a log.

    A number that is new is appended. When the run starts or goes on, and when a number comes that is there already,
    everything is written again from the log: a round that a kill made a run do twice is there once, and rounds that
    were done before anybody tracked them are there too.

    Args:
        tracker: told of every number once.
        log: must have an event before this is called with it.
        warn: told once if the tracker cannot be written; the run goes on without it, and the next start writes all.
    Cost: a start reads the log: 0.3 s for 1,000 rounds.
    """

    def __init__(self, tracker: Tracker, log: Path, warn: Callable[[str], None]) -> None:
        self._tracker, self._log, self._warn = tracker, log, warn
        self._there: set[tuple[str, int]] = set()
        self._lost = False

    def __call__(self, event: Event) -> None:
        """Write what is new."""
        if self._lost:
            return
        found = points(Line(time.time(), event))
        try:
            if isinstance(event, (RunStarted, RunResumed)) or self._there & places(found):
                found = curves(typed(read_events(self._log), self._log))
                self._tracker.rewrite(found)
                self._there = places(found)
            elif found:
                self._tracker.append(found)
                self._there |= places(found)
        except OutputError as error:
            self._lost = True
            self._warn(f"{WHERE} ends here, and the run goes on: {error}")


@contextmanager
def tracking(
    asked: Sequence[str], log: Path, listener: Listener, warn: Callable[[str], None]
) -> Iterator[Listener]:
    """Let trackers listen while a run goes on.

    Args:
        asked: each NAME or NAME:FOLDER; the folder is NAME beside the log if not given.
        log: the run's event log.
        listener: told first.
        warn: told of a tracker that cannot be written any more.

    Yields:
        What is to be told of every event, after the log.

    Raises:
        ConfigError: if there is no tracker of a name, with the nearest one.
        MissingExtraError: if its library is not installed.
        OutputError: if its folder cannot be written to.
    """
    told: list[Listener] = [listener]
    with ExitStack() as opened:
        for make, folder in dict.fromkeys(_read(text, log.parent) for text in asked):
            tracker = make(folder, log)
            opened.callback(tracker.close)
            told.append(Tracked(tracker, log, warn))

        def tell(event: Event) -> None:
            for one in told:
                one(event)

        yield tell


def _read(text: str, beside: Path) -> tuple[Callable[[Path, Path], Tracker], Path]:
    name, colon, folder = text.partition(":")
    make = by_name(name, TRACKERS, "tracker")
    if colon and not folder.strip():
        raise ConfigError(f"{text!r} names no folder", where=WHERE, hint=f"{name} or {name}:FOLDER")
    return make, Path(folder) if colon else beside / name
