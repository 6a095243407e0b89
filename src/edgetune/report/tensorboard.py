"""Curves as files that TensorBoard reads; written here, shown by whatever TensorBoard there is."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

from edgetune.core.errors import ConfigError, MissingExtraError
from edgetune.core.files import PARTIAL, unwritable, without_trace, writable_folder
from edgetune.report.scalars import Point

EVENTS = "events.out.tfevents."
"""How names begin that TensorBoard looks for; it reads files in the order of their names."""
VERSION = "brain.Event:2"


class TensorBoard:
    """A folder of event files of which one has content; another takes its place when a run goes on.

    TensorBoard takes a folder for one run, so this one belongs to one log.

    Args:
        folder: where the file goes; made with the first number.
        log: event log of the run.

    Raises:
        MissingExtraError: if tensorboardX is not installed.
        OutputError: if the folder cannot be written to.
        ConfigError: if it holds event files of another run.
    Cost: 0.3 ms and 400 bytes a round and an `fsync`; 35 ms for 1,000 rounds anew.
    Source: the format is TFRecord (length, masked CRC-32C, bytes) of tensorflow.Event.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        try:
            from tensorboardX import RecordWriter
            from tensorboardX.proto import event_pb2
        except ImportError as error:
            raise MissingExtraError("tensorboardX", "tensorboard", "--track tensorboard") from error
        self._open, self._messages = RecordWriter, event_pb2
        self._writer: Any = None
        self.folder = folder.resolve()  # and so no name that the library takes for a bucket in a cloud
        way = os.path.relpath(log.resolve(), self.folder)  # survives a move of both
        self._ending = f".edgetune-{sha256(way.encode()).hexdigest()[:8]}"
        with without_trace(self.folder):
            writable_folder(self.folder)
        others = [file for file in self.folder.glob("*tfevents*") if not file.name.endswith(self._ending)]
        if others:
            hint = "name a folder of its own: --track tensorboard:FOLDER"
            raise ConfigError(f"holds event files of another run: {others[0].name}", where=folder, hint=hint)

    def rewrite(self, points: Sequence[Point]) -> None:
        """Put these numbers in place of all that is there, by a new file.

        Raises:
            OutputError: if they cannot be written.
        """
        with self._written():
            self.close()
            self.folder.mkdir(parents=True, exist_ok=True)
            old = sorted(self.folder.glob(f"{EVENTS}*{self._ending}"))
            partial = self.folder / f"{PARTIAL}tensorboard"
            self._writer = self._open(str(partial))
            self._put(file_version=VERSION)
            start = self._messages.SessionLog(status=self._messages.SessionLog.START)
            self._put(step=0, session_log=start)  # a TensorBoard that is open forgets what it has read
            self._points(points)
            partial.rename(self.folder / f"{EVENTS}{_after(old)}{self._ending}")
            for file in old[:-1]:
                file.unlink()
            for file in old[-1:]:
                os.truncate(file, 0)  # a TensorBoard that is open finds its file, and goes on to the next

    def append(self, points: Sequence[Point]) -> None:
        """Add numbers, and see them on the disk.

        Raises:
            OutputError: if they cannot be written.
        """
        with self._written():
            self._points(points)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):  # what counts was flushed
                self._writer.close()
            self._writer = None

    def _points(self, points: Sequence[Point]) -> None:
        for (step, when), group in groupby(points, lambda point: (point.step, point.time)):
            values = [{"tag": point.tag, "simple_value": point.value} for point in group]
            self._put(step=step, wall_time=when, summary={"value": values})
        self._writer.flush()

    def _put(self, **fields: Any) -> None:
        event = self._messages.Event(**{"wall_time": time.time(), **fields})
        self._writer.write(event.SerializeToString())

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise unwritable(error, self.folder) from error


def _after(files: Sequence[Path]) -> int:
    """Return a number for a file's name: the time in nanoseconds, or one more than the newest if a clock went back."""
    numbers = [file.name.removeprefix(EVENTS).partition(".")[0] for file in files]
    return max([time.time_ns(), *(int(number) + 1 for number in numbers if number.isdigit())])
