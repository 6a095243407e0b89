"""A command of the device's owner that says whether the device may work now."""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edgetune.core.errors import ConfigError

WHERE = "--only-when hook"
SECONDS = 10.0
"""Time that a hook has, from its start."""
KEPT = 1000
"""Bytes of its output that are read; the rest is thrown away."""
SHOWN = 200
"""Characters of a reason."""
LOOK = 0.02
"""Seconds between two looks whether it has ended."""


@dataclass(frozen=True, slots=True)
class Hook:
    """A command that is asked before every round.

    - It is started without a shell: words as a POSIX shell would split them, no variables, no pipes, no wildcards.
      Where these are wanted, name a script.
    - Its standard input is empty, its error output is thrown away, its environment is that of `edgetune device`.
    - Exit code 0: the device may work. 1: not now, and the first line of its standard output is the reason. Anything
      else is an error of the hook: the device does not work either, and the server is told.
    - It has 10 seconds. After that it and everything that it started (in its process group) is killed, and the device
      does not work in this round.

    Args:
        words: the command, at least one word.
        seconds: time that it has.

    Raises:
        ConfigError: if there is no command, or no such program.
    """

    words: tuple[str, ...]
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if not self.words:
            raise ConfigError("the hook names no command", where=WHERE, hint="--only-when 'hook:COMMAND'")
        if shutil.which(self.words[0]) is None:
            hint = "name a program that can be executed, with its folder"
            raise ConfigError(f"no program {self.words[0]!r}", where=WHERE, hint=hint)

    @classmethod
    def of(cls, text: str) -> Hook:
        """Read a command line.

        Raises:
            ConfigError: also if a quotation mark is left open.
        """
        try:
            return cls(tuple(shlex.split(text)))
        except ValueError as error:
            raise ConfigError(f"cannot read {text!r}: {error}", where=WHERE) from error

    def refusal(self) -> str | None:
        """Return why the device does not work now, None if it may.

        Cost: the hook's time, at most 10 seconds and what the system needs to kill it.
        """
        name = Path(self.words[0]).name
        try:
            process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            return f"its hook {name} cannot be started: {error.strerror}"
        said = _until_end(process, time.monotonic() + self.seconds)
        if said is None:
            return f"its hook {name} did not answer within {self.seconds:g} s"
        if process.returncode == 0:
            return None
        if process.returncode == 1:
            return _first_line(said) or f"its hook {name} says not now"
        return f"its hook {name} failed with exit code {process.returncode}"


def _until_end(process: subprocess.Popen[bytes], deadline: float) -> bytes | None:
    """Return the beginning of what a process prints, None if it does not end in time.

    Its own end counts, not that of its output: something it left behind may hold that open.
    """
    out: IO[bytes] = process.stdout  # type: ignore[assignment]
    with out, selectors.DefaultSelector() as selector:
        os.set_blocking(out.fileno(), False)
        selector.register(out, selectors.EVENT_READ)
        said, open_ = b"", True
        while True:
            over = process.poll() is not None  # before reading: what it printed is in the pipe by then
            if not over and time.monotonic() > deadline:
                _kill(process)
                return None
            if not open_:
                time.sleep(0 if over else LOOK)
            elif selector.select(0 if over else LOOK):
                read = out.read(1 << 16)
                said, open_ = (said + (read or b""))[:KEPT], read != b""
            if over:
                return said


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def _first_line(said: bytes) -> str:
    """Return what can be shown on one line: the reason goes to another machine's log and terminal."""
    text = said.decode("utf-8", "replace").strip()
    line = text.splitlines()[0] if text else ""
    return "".join(letter if letter.isprintable() else " " for letter in line).strip()[:SHOWN]
