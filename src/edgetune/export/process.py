"""A child process that holds llama.cpp: started, asked, limited in time and memory, and missed when it dies."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import psutil

from edgetune.core.errors import ConfigError, MissingExtraError, ModelError
from edgetune.export import child

SCRIPT = Path(child.__file__)

LOAD_SECONDS, BYTES_A_SECOND = 120, 5_000_000
"""A load may take this long, and as much longer as the slowest card needs to read the file."""

ANSWER_SECONDS, TOKEN_SECONDS = 120, 10
"""An answer may take this long, and as much longer a token; slower than any machine that is worth waiting for."""

LONGEST_SOCKET = 100
"""Bytes of a socket's path that every system takes."""

SHOWN_LOG = 64 * 1024

Json = dict[str, Any]


class Process:
    """One GGUF file in a process of its own.

    The process ends with this object, with this process, or when it exceeds its limits; it never takes this process
    with it. It talks through pipes; the socket on which its HTTP server listens stands in a folder of this user's.

    Args:
        path: the file, whose structure is sound.
        order: what `child.py` is to load: `threads`, `context`, `end`, `vocabulary`, `exact`, `adapters`.

    Raises:
        ModelError: if llama.cpp refuses the file, dies of it, or takes too long.
        MissingExtraError: if `xllamacpp` is not installed.
    """

    def __init__(self, path: Path, order: Json) -> None:
        self.path = path
        python, library = _python(), _library()
        self.key, self._folder = secrets.token_urlsafe(24), _private_folder()
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has died
        self._lock, self._number, self._buffer = threading.Lock(), 0, bytearray()
        size = path.stat().st_size
        seconds = LOAD_SECONDS + size // BYTES_A_SECOND
        try:
            self._process = subprocess.Popen(
                [python, "-I", "-S", str(SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for this process only
            )
        except OSError as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise ModelError(f"cannot start llama.cpp: {error.strerror}", where=path) from error
        self._end = weakref.finalize(self, _end, self._process, self._folder, self._log)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe(self._process.stdout), selectors.EVENT_READ)
        self._say(
            order
            | {
                "file": str(path.absolute()),
                "folder": self._folder,
                "key": self.key,
                "library": library,
                "load_seconds": seconds,
                "memory": psutil.virtual_memory().total + psutil.swap_memory().total + size,
            }
        )
        # The kernel ends a load that exceeds its time, so that it ends even if this process does not live to see it.
        self._line(seconds + ANSWER_SECONDS)

    @property
    def socket(self) -> Path:
        """Where the HTTP server of llama.cpp listens; only this user can reach it, with the key."""
        return Path(self._folder) / child.SOCKET

    @property
    def alive(self) -> bool:
        """Whether the process was not closed and has not died."""
        return self._end.alive and self._process.poll() is None

    def ask(
        self,
        operation: str,
        *,
        tokens: int = 0,
        on_piece: Callable[[str], bool] | None = None,
        **request: Any,
    ) -> Any:
        """Return the answer of one operation.

        Args:
            operation: a name in `child.OPERATIONS`.
            tokens: how many tokens it reads and writes, which decides how long it may take.
            on_piece: called with every piece of a streamed answer; returning True ends it.
            request: the operation's arguments.

        Raises:
            ModelError: if the process was closed, dies or takes too long.
            RefusedError: if llama.cpp answers with an error.
            Whatever `on_piece` raises, after which the answer is ended.
        """
        with self._lock:
            if not self._end.alive:
                raise ModelError("the model was closed", where=self.path)
            self._number += 1
            number, seconds = self._number, ANSWER_SECONDS + TOKEN_SECONDS * tokens
            try:
                self._say({"op": operation, "number": number, "request": request})
                while True:
                    answer = self._line(seconds)
                    if answer.get("number") != number:
                        continue  # what was still on its way when an answer was ended
                    if "error" in answer:
                        raise RefusedError(answer["error"])
                    if "result" in answer:
                        return answer["result"]
                    if on_piece is not None and on_piece(answer["piece"]):
                        self._say({"op": "stop", "number": number})
            except BaseException:
                if self.alive:
                    self._say({"op": "stop", "number": number})
                raise

    def close(self) -> None:
        """End the process; safe to call twice."""
        self._end()

    def _say(self, message: Json) -> None:
        pipe = self._process.stdin
        try:
            if pipe is not None:
                pipe.write(json.dumps(message).encode() + b"\n")
                pipe.flush()
        except OSError:
            self._died()

    def _line(self, seconds: float) -> Json:
        """Wait for one line.

        Raises:
            ModelError: if the process dies, or says nothing for so long.
        """
        deadline, seen = time.monotonic() + seconds, 0
        while (end := self._buffer.find(b"\n", seen)) < 0:
            seen = len(self._buffer)
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                self.close()
                raise ModelError(
                    f"llama.cpp did not answer within {seconds:.0f} s",
                    where=self.path,
                    hint="export it again",
                )
            part = os.read(self._pipe(self._process.stdout), 1 << 20)
            if not part:
                self._died()
            self._buffer += part
        line: Json = json.loads(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _died(self) -> NoReturn:
        """Say why the process ended, in llama.cpp's words where it left any."""
        try:
            code = self._process.wait(ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._log.seek(0)
        said = _reason(self._log.read(SHOWN_LOG).decode(errors="replace"))
        self.close()
        if code == -signal.SIGALRM:
            what = "llama.cpp did not load this file in time"
        elif code < 0:
            what = f"llama.cpp died of this file ({signal.Signals(-code).name})"
        else:
            what = "llama.cpp cannot load this file"
        raise ModelError(f"{what}: {said}" if said else what, where=self.path, hint="export it again")

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> int:
        if pipe is None:
            raise ModelError("the process has no pipe")
        return pipe.fileno()


class RefusedError(Exception):
    """llama.cpp answered with an error.

    Args:
        error: its answer: `message`, and perhaps `type` and `code`.
    """

    def __init__(self, error: Json) -> None:
        self.error = error
        super().__init__(one_line(str(error.get("message", error))))


def _end(process: subprocess.Popen[bytes], folder: str, log: IO[bytes]) -> None:
    """End a process: it goes by itself when its input ends, unless it is stuck."""
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue  # what was not yet written has no reader any more
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    log.close()
    shutil.rmtree(folder, ignore_errors=True)


def _python() -> str:
    if not sys.executable:
        raise ModelError("this Python does not know its own program, so llama.cpp cannot be started")
    return sys.executable


def _library() -> str:
    """Return the folder from which `xllamacpp` is imported, without importing it here.

    Raises:
        MissingExtraError: if it is not installed.
    """
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise MissingExtraError("xllamacpp", "deploy", "Running a GGUF file")
    return str(Path(found.origin).parent.parent)


def _environment() -> dict[str, str]:
    """Return this process's environment without what makes llama.cpp log prompts or start a debugger."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    return kept | {"GGML_NO_BACKTRACE": "1"}


def _private_folder() -> str:
    """Create a folder that only this user can enter, with a path short enough for a socket."""
    for parent in (tempfile.gettempdir(), "/tmp"):
        if len(os.fsencode(parent)) + len("/edgetune-12345678/") + len(child.SOCKET) <= LONGEST_SOCKET:
            return tempfile.mkdtemp(prefix="edgetune-", dir=parent)
    raise ConfigError("no temporary folder with a short path", hint="set TMPDIR to one")


def _reason(log: str) -> str:
    """Return the most telling line of llama.cpp's log: what failed while loading, or the broken assertion."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for pattern in (
        r"error loading model: (.*)",
        r"(GGML_ASSERT\(.*)",
        r"\bE \w.*?: (.*)",
        r"(\w+Error: .*)",
        r"(.+)",
    ):
        for line in lines:
            found = re.search(pattern, line)
            if found:
                return one_line(found[1])
    return ""


def one_line(text: str, most: int = 300) -> str:
    """Return what a file made a program say so that it can be shown: one short line of printable characters."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[: 10 * most])
    line = " ".join(shown.split())
    return line if len(line) <= most else f"{line[:most]} ..."
