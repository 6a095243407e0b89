"""The only log of a run: one JSON object a line in `events.jsonl`, written as things happen."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError, OutputError
from edgetune.core.events import Event


class EventLog:
    """Append events to a file, one flushed line each; a line that a kill cut short is removed first.

    Args:
        path: the `events.jsonl` to append to; its folder must exist.

    Raises:
        OutputError: if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            whole = path.read_bytes()
            if not whole.endswith(b"\n"):
                os.truncate(path, whole.rfind(b"\n") + 1)

    def __call__(self, event: Event) -> None:
        """Write one line."""
        line = json.dumps({"event": event.kind, "time": time.time(), **asdict(event)}, allow_nan=True)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise OutputError(f"cannot write the event log: {error.strerror}", where=self.path) from error


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of an event log as dictionaries; a last line cut short by a kill is left out.

    Raises:
        DataError: if there is no such file, or a line before the last is not an event.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError("no event log here", where=path, hint="give the folder of an edgetune run") from error
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or absurd
            if number == len(lines):
                return
            raise DataError(f"line {number} is not JSON", where=path) from error
        if not isinstance(found, dict) or not isinstance(found.get("event"), str):
            raise DataError(f"line {number} is no event", where=path)
        yield found
