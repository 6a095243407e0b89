"""The log of a run that goes on, read a line at a time: rounds, losses, bytes and reasons so far."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError
from edgetune.core.events import Failed, RoundFinished, RunFinished, RunResumed, RunStarted
from edgetune.core.host_events import DeviceSeen, HostsRound
from edgetune.core.reasons import shortened


@dataclass(frozen=True, slots=True)
class Done:
    """What a round's `round` event says that a status shows."""

    loss: float | None
    train_loss: float | None
    up: int
    down: int


@dataclass(frozen=True, slots=True)
class Network:
    """What its `hosts_round` event says."""

    online: int
    registered: int
    up: int
    down: int
    unanswered: Counter[str]
    late: int


@dataclass(slots=True)
class Run:
    """The newest run of a log, as far as it is written."""

    start: dict[str, Any] = field(default_factory=dict)
    """Its `run_started` event; empty before it."""
    rounds: dict[int, Done] = field(default_factory=dict)
    network: dict[int, Network] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    """Devices and strangers that were turned away, by why."""
    failure: str | None = None
    over: bool = False
    """Whether the last attempt ended, in order or with `failure`."""
    last_time: float | None = None
    """When the last line was written, unix seconds."""

    def back_to(self, round: int) -> None:
        """Forget what came after a checkpoint."""
        self.rounds = {number: done for number, done in self.rounds.items() if number <= round}
        self.network = {number: done for number, done in self.network.items() if number <= round}

    @property
    def counted(self) -> list[Network]:
        """What the network did in the rounds that count, ascending."""
        return [self.network[number] for number in sorted(self.network) if number in self.rounds]


class Following:
    """Reads what was written since it last looked; for one thread at a time.

    Args:
        path: an `events.jsonl`, which may come later.

    Cost: one pass over the new lines a look; memory of a few numbers a round.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._forget()

    def _forget(self) -> None:
        self._at, self._line, self._file = 0, 0, 0
        self._run = Run()
        self._earlier: Run | None = None

    def run(self) -> Run | None:
        """Return the newest run, None if nothing is written yet.

        Raises:
            DataError: if a line is no event, or one of its fields is of another type.
        """
        try:
            with self._path.open("rb") as log:
                found = self._path.stat()
                if found.st_size < self._at or found.st_ino != self._file:  # another log has its name now
                    self._forget()
                    self._file = found.st_ino
                log.seek(self._at)
                new = log.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"cannot read: {error.strerror}", where=self._path) from error
        whole = new[: new.rfind(b"\n") + 1]  # a line is still being written, or was cut short by a kill
        for line in whole.splitlines():
            self._line += 1
            self._take(line)
        self._at += len(whole)
        return self._shown() if self._line else None

    def _shown(self) -> Run:
        """Return the run; until an attempt says whether it goes on with the one before, that one's rounds are shown."""
        run, before = self._run, self._earlier
        if before is None or run.rounds or not _same(run.start, before.start):
            return run
        return Run(
            run.start, before.rounds, before.network, before.refused + run.refused, run.failure, run.over,
            run.last_time,
        )  # fmt: skip

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            kind = event["event"]
            if not isinstance(kind, str):
                raise TypeError
            self._fold(kind, event)
            self._run.last_time = float(event.get("time", 0.0))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise DataError(f"line {self._line} is no event, or damaged", where=self._path) from error

    def _fold(self, kind: str, event: dict[str, Any]) -> None:
        """Take one event; which lines are of the newest run is as `report.log.newest_run` says."""
        run = self._run
        if kind == RunStarted.kind:
            brief = self._earlier is not None and not run.rounds and _same(run.start, self._earlier.start)
            self._earlier = self._earlier if brief else run if run.start else None
            self._run = Run(event)
        elif kind == RunResumed.kind:
            if self._earlier is not None:
                run.rounds, run.network = self._earlier.rounds, self._earlier.network
                run.refused += self._earlier.refused
                self._earlier = None
            run.back_to(_whole(event["round"]))
        elif kind == RoundFinished.kind:
            self._earlier = None
            run.rounds[_whole(event["round"])] = Done(
                _number(event["loss"]),
                _number(event["train_loss"]),
                sum(map(_whole, event["payload_up_bytes"])),
                sum(map(_whole, event["payload_down_bytes"])),
            )
        elif kind == HostsRound.kind:
            run.network[_whole(event["round"])] = Network(
                _whole(event["online"]),
                _whole(event["registered"]),
                sum(map(_whole, event["transport_up_bytes"].values())),
                sum(map(_whole, event["transport_down_bytes"].values())),
                Counter(map(shortened, event["unanswered"].values())),
                len(event["late"]),
            )
        elif kind == DeviceSeen.kind and event["state"] == "refused":
            run.refused[shortened(event["why"] or "refused")] += 1
        elif kind == Failed.kind:
            run.failure, run.over = shortened(event["what"]), True
        elif kind == RunFinished.kind:
            run.over = True


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    keys = ("config", "method", "base_digest", "seed")
    return [one.get(key) for key in keys] == [other.get(key) for key in keys]


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError
    return value


def _number(value: Any) -> float | None:
    """Return a number, None for what JSON does not know."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return float(value) if math.isfinite(value) else None
