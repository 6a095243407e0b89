"""Processes of edgetune for tests: logs in files, lines waited for, killed, started again; nothing survives them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

KILLING = Path(__file__).with_name("killing.py")
OWNER = "EDGETUNE_TEST_OWNER"
"""In the environment of everything that is started here, and so of whatever that starts."""
PATIENCE = 10.0
"""Seconds that a process has to end when it is asked to."""


def mark(pid: int | None = None) -> str:
    """Return a name of a process, this one if none is said, that no later process has: its number and its start."""
    pid = os.getpid() if pid is None else pid
    begun = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{pid}.{begun}"


def alive(name: str) -> bool:
    """Return whether the process of a mark is still there."""
    try:
        return mark(int(name.partition(".")[0])) == name
    except OSError:
        return False


def owned() -> Iterator[tuple[int, str]]:
    """Yield every process that was started here, by this test or another, and whose it is."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is somebody else's
            for line in (folder / "environ").read_bytes().split(b"\0"):
                if line.startswith(f"{OWNER}=".encode()):
                    yield int(folder.name), line.partition(b"=")[2].decode()


def kill(pid: int) -> None:
    """End a process at once, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def sweep() -> list[int]:
    """End what was started by tests that were killed themselves; returns what it was."""
    found = [pid for pid, owner in owned() if not alive(owner.rpartition(".")[0])]
    for pid in found:
        kill(pid)
    return found


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a process takes now.

    Args:
        resident: bytes in memory, shared ones included.
        proportional: those, with shared ones divided by the number of processes that share them.
        private: those that no other process shares: what one more process costs.
        files: open files, sockets and pipes.
        cpu: seconds of processor time since its start.
    """

    resident: int
    proportional: int
    private: int
    files: int
    cpu: float


def footprint(pid: int) -> Footprint:
    """Measure a process.

    Raises:
        OSError: if it is gone.
    """
    folder = Path(f"/proc/{pid}")
    found = re.findall(r"^(\w+): +(\d+) kB", (folder / "smaps_rollup").read_text(), re.M)
    sizes = {name: 1024 * int(size) for name, size in found}
    ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
    return Footprint(
        resident=sizes["Rss"],
        proportional=sizes["Pss"],
        private=sizes["Private_Clean"] + sizes["Private_Dirty"],
        files=len(list((folder / "fd").iterdir())),
        cpu=sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
    )


class Started:
    """One command line of edgetune, running or ended; it can be started again.

    Args:
        arguments: after `edgetune`.
        log: file of what it says, on both outputs; every start adds to it.
        prefix: put before the command, for example the one of a network namespace.
        environment: of the process.
    """

    def __init__(
        self, arguments: Sequence[str], log: Path, prefix: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self._arguments, self._prefix, self._environment = list(arguments), list(prefix), dict(environment)
        self.log, self._from = log, 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, killed_at: str | None = None) -> Started:
        """Start it, once more if it has ended; `killed_at` names a phase of killing.py."""
        assert self._process is None or self._process.poll() is not None, f"it still runs: {self._arguments}"
        how = ["-m", "edgetune"] if killed_at is None else [str(KILLING), killed_at, "--"]
        with self.log.open("ab") as log:
            self._from = log.tell()
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, *how, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )
        return self

    @property
    def pid(self) -> int:
        """Its number; a namespace's prefix becomes the command, so this is the command's."""
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs. Minus the signal if it was one."""
        return None if self._process is None else self._process.poll()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def said(self) -> str:
        """What it has said since its last start."""
        with self.log.open("rb") as file:
            file.seek(self._from)
            return file.read().decode(errors="replace")

    def wait_for(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        """Wait until it has said something since its last start.

        Raises:
            AssertionError: with what it said instead, if it ends first or the time is over.
        """
        found = list[re.Match[str]]()

        def look() -> bool:
            over = self.code is not None  # before reading: what it said last is read then
            found.extend(re.finditer(pattern, self.said, re.M))
            assert found or not over, self._story(f"ended with {self.code} without saying {pattern!r}")
            return bool(found)

        if not until(look, timeout):
            raise AssertionError(self._story(f"did not say {pattern!r} in {timeout} s"))
        return found[0]

    def wait(self, timeout: float = 60) -> int:
        """Wait for its end; returns its code.

        Raises:
            AssertionError: with what it said, if it does not end in time.
        """
        assert self._process is not None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._story(f"did not end in {timeout} s")) from None

    def kill(self) -> None:
        """End it with SIGKILL, as the power being cut does; it must still be running."""
        assert self._process is not None
        assert self.code is None, self._story(f"ended by itself with {self.code}")
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """Ask it to end, as systemd does; returns its code."""
        assert self._process is not None
        self._process.terminate()
        return self.wait(PATIENCE)

    def footprint(self) -> Footprint:
        """Measure it."""
        return footprint(self.pid)

    def _story(self, what: str) -> str:
        return f"edgetune {' '.join(self._arguments)} {what}; the end of {self.log}:\n{self.said[-3000:]}"


class Processes:
    """The processes of a test as a context: at its end they are stopped, and none may be left.

    Args:
        folder: of the logs.
        environment: added to this process's own.

    Raises:
        AssertionError: at its end, naming what could only be killed.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._owner = f"{mark()}.{uuid.uuid4().hex[:8]}"
        self._folder = folder
        self.environment = {
            **os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200", "NO_COLOR": "1", **(environment or {}),
            OWNER: self._owner,
        }  # fmt: skip
        self._started = dict[str, Started]()

    def __enter__(self) -> Processes:
        sweep()
        return self

    def start(
        self,
        name: str,
        *arguments: str | Path,
        prefix: Sequence[str] = (),
        killed_at: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Started:
        """Start `edgetune ARGUMENTS`, its log in NAME.log."""
        return self.ready(name, *arguments, prefix=prefix, environment=environment).start(killed_at)

    def ready(
        self,
        name: str,
        *arguments: str | Path,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> Started:
        """Return what `start` starts, before its first start."""
        assert name not in self._started
        words = [str(one) for one in arguments]
        log, environment = self._folder / f"{name}.log", {**self.environment, **(environment or {})}
        made = self._started[name] = Started(words, log, prefix, environment)
        return made

    def alive(self) -> list[int]:
        """Return what runs of what was started here, descendants included."""
        return [pid for pid, owner in owned() if owner == self._owner]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        running = [one for one in self._started.values() if one.running]
        for one in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGTERM)
        until(lambda: not [one for one in running if one.code is None] and not self.alive(), PATIENCE)
        left = {pid: _command(pid) for pid in self.alive()}
        for pid in left:
            kill(pid)
        until(lambda: not self.alive(), PATIENCE)
        for one in running:
            one.wait()
        assert error is not None or not left, f"what outlived the test: {left}"


def until(done: Callable[[], bool], timeout: float, every: float = 0.02) -> bool:
    """Wait for something; returns whether it came in time, seconds."""
    end = time.monotonic() + timeout
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return "gone"
