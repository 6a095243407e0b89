"""What an earlier start of the same run measured, which a later one need not measure again."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from edgetune.core.event_log import read_events
from edgetune.core.events import RunStarted, Sample, StageFinished

SAME = ("config", "method", "base_digest", "seed", "versions", "device", "threads")
"""What decides a measurement, as a run's first event says it; that the data are the same, the ledger has shown."""


def measured_before(log: Path, stage: str) -> tuple[StageFinished, list[Sample]] | None:
    """Return a stage's row and answers from the log of a run that goes on; None if they are not there.

    Args:
        log: the run's, in which its newest start has announced itself.
        stage: name of the row.
    """
    found = list[list[dict[str, Any]]]()
    start: dict[str, Any] = {}
    for event in read_events(log):
        if event["event"] == RunStarted.kind:
            if any(event.get(name) != start.get(name) for name in SAME):
                found = []
            start = event
        elif event["event"] == StageFinished.kind and event.get("name") == stage:
            found.append([event])
        elif event["event"] == Sample.kind and event.get("stage") == stage and found:
            found[-1].append(event)
    if not found:
        return None
    row, *answers = max(found, key=len)  # a start may have been killed between two of them
    try:
        return (
            StageFinished(**{field.name: row[field.name] for field in fields(StageFinished)}),
            [Sample(**{field.name: one[field.name] for field in fields(Sample)}) for one in answers],
        )
    except KeyError:  # of another version
        return None
