"""What a server keeps on disk for `edgetune status` while it runs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from edgetune.core.files import write_text_atomic
from edgetune.hosts.remote import Remote

STATUS = "status.json"
SELDOM = 0.5
"""Seconds between two writings, unless the phase changed."""


class Shown:
    """Writes what is going on, seldom enough for a card that wears out.

    Args:
        out: the run's folder.
        rounds: of the run.
        registered: devices with a key.
    """

    def __init__(self, out: Path, rounds: int, registered: int) -> None:
        self._path, self._rounds, self._registered = out / STATUS, rounds, registered
        self._since, self._written, self._phase = time.time(), 0.0, ""
        self._remote: Remote | None = None

    def begin(self, remote: Remote) -> None:
        """Show these devices."""
        self._remote = remote

    def show(self) -> None:
        """Write what is going on."""
        remote = self._remote
        if remote is None or (remote.phase == self._phase and time.monotonic() - self._written < SELDOM):
            return
        self._phase, self._written = remote.phase, time.monotonic()
        said = {
            "pid": os.getpid(), "round": remote.round, "rounds": self._rounds, "phase": remote.phase,
            "asked": remote.asked, "heard": sorted(remote.heard), "online": remote.online,
            "registered": self._registered, "since": self._since,
        }  # fmt: skip
        write_text_atomic(self._path, json.dumps(said) + "\n")
