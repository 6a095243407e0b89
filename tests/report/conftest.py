"""A fixture that writes event logs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest

from edgetune.core import event_log
from edgetune.core.event_log import EventLog
from edgetune.core.events import Event

from .logs import Write


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write events seven seconds apart; what comes later is appended."""
    clock = itertools.count(1_790_000_000, 7)
    monkeypatch.setattr(event_log.time, "time", lambda: float(next(clock)))

    def write(run: Iterable[Event]) -> Path:
        log = EventLog(tmp_path / "events.jsonl")
        for event in run:
            log(event)
        return tmp_path

    return write
