"""Whether a machine has nothing else to do: its load without what this process adds to it."""

from __future__ import annotations

import math
import os
import threading
import time
import weakref
from collections.abc import Callable

import psutil

from edgetune.core.errors import ConfigError

MINUTE = 60.0
"""Seconds of the system's shortest average."""
EVERY = 5.0
"""Seconds between two looks; the kernel's own interval."""
BUSY = 0.5
"""Load of others a core from which on a machine is busy."""


class OwnLoad:
    """What this process adds to the system's 1-minute load, averaged as the kernel averages.

        own <- own * f + (processor seconds / seconds) * (1 - f),    f = exp(-seconds / 60)

    A thread of this process that waits for a core or a disk is in the system's load and not in this: it waits because
    something else keeps the machine busy.

    Args:
        used: processor seconds of all threads of this process so far.
        clock: seconds of a clock that never goes back.
        age: seconds that this process exists.
    """

    def __init__(
        self,
        used: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
        age: float | None = None,
    ) -> None:
        self._used, self._clock, self._lock = used, clock, threading.Lock()
        lived = age if age is not None else time.time() - psutil.Process().create_time()
        self._at, self._before, self._mean = clock() - max(0.1, lived), 0.0, 0.0
        self.look()

    def look(self) -> float:
        """Take what was used since the last look into the mean, and return that."""
        with self._lock:
            now, used = self._clock(), self._used()
            passed = now - self._at
            if passed > 0:
                kept = math.exp(-passed / MINUTE)
                self._mean = self._mean * kept + (used - self._before) / passed * (1 - kept)
                self._at, self._before = now, used
            return self._mean


class Idle:
    """A device works only while others keep the machine less than half busy.

        (1-minute load - own load) / cores < 0.5

    Args:
        load: the system's 1-minute load.
        own: this process's share of it; if not given, it is looked at every 5 seconds by a thread that ends with this
            object.
        cores: of the whole machine, since its load is that of the whole machine.

    Raises:
        ConfigError: if the system tells no load.
    Cost: a thread that wakes every 5 seconds.
    """

    def __init__(
        self,
        load: Callable[[], float] | None = None,
        own: Callable[[], float] | None = None,
        cores: int | None = None,
    ) -> None:
        self._load = load or _system_load
        self._cores = cores or os.cpu_count() or 1
        try:
            self._load()
        except (OSError, AttributeError) as error:
            raise ConfigError(
                "this machine tells no load",
                where="--only-when idle",
                hint="--only-when 'hook:COMMAND', where COMMAND exits with 0 when the device may work",
            ) from error
        self._own = own or self._watched()

    def refusal(self) -> str | None:
        """Return why the device does not work now, None if it may."""
        try:
            others = max(0.0, self._load() - self._own()) / self._cores
        except OSError as error:
            return f"busy as far as it says: its load cannot be read ({error.strerror})"
        return None if others < BUSY else f"busy: load {others:.2f} a core by others, {BUSY} is the most"

    def _watched(self) -> Callable[[], float]:
        own, ended = OwnLoad(), threading.Event()
        weakref.finalize(self, ended.set)
        threading.Thread(target=_look, args=(own, ended), daemon=True, name="own load").start()
        return own.look


def _look(own: OwnLoad, ended: threading.Event) -> None:
    while not ended.wait(EVERY):
        own.look()


def _system_load() -> float:
    return os.getloadavg()[0]
