"""The devices of a round side by side: this process and its worker processes take them from one list."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, BinaryIO, cast

from edgetune.core.events import Listener
from edgetune.core.host_events import WorkerLost
from edgetune.core.progress import Progress, silent
from edgetune.federation.hands import Member, Task
from edgetune.federation.pipes import Message, receive, send, to_error
from edgetune.federation.tasks import told_task

if TYPE_CHECKING:
    from edgetune.federation.device import Device

MAIN = "import sys; sys.path[:] = sys.argv[1:]; from edgetune.federation.crewman import main; main()"
"""What a worker runs: it imports from where this process does, and from nowhere else."""
PATIENCE = 5.0
"""Seconds that a worker has to end by itself."""


class Crew:
    """Devices answer in this process and in worker processes, each with a model of its own.

    A reply is a function of the payload, so whoever computes it, the bits are the same. A worker takes part once it has
    loaded the model; until then, and whenever it is free, this process takes the next device itself. A device whose
    worker was killed is done again by another. Workers are new processes, not copies of this one, and end with it
    however it ends: they watch the pipe that they are told through.

    Args:
        helpers: number of worker processes, at least 0.
        opening: what a worker is told at its start.
        share: what it is told of a device before that device's first task.
        listener: told of workers that were lost.
    """

    members: Mapping[int, Member] | None = None
    unanswered: Mapping[int, str] = MappingProxyType({})

    def __init__(
        self,
        helpers: int,
        opening: Message,
        share: Callable[[int], Message],
        *,
        listener: Listener,
    ) -> None:
        self._devices: Mapping[int, Device] = {}
        self.start = ""
        self._progress: Progress = silent
        self._listener = listener
        self._change = threading.Condition()
        self._waiting, self._replies = deque[Task](), dict[int, bytes]()
        self._error: BaseException | None = None
        self._lost = list[WorkerLost]()
        self._closed = False
        self._helpers = [_Helper(self, opening, share) for _ in range(helpers)]

    @property
    def processes(self) -> int:
        """Processes that devices answer in, this one and those workers included that have loaded the model."""
        return 1 + sum(helper.ready for helper in self._helpers)

    @property
    def beside_bytes(self) -> int:
        """Sum of the workers' peaks, each of its last answer; memory that they share counts in each."""
        return sum(helper.peak_bytes for helper in self._helpers)

    def __enter__(self) -> Crew:
        """Start the workers."""
        for helper in self._helpers:
            helper.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers."""
        self.close()

    def enlist(self, devices: Mapping[int, Device], start: str = "") -> Crew:
        """Take the devices, by id, that answer in this process, and the digest of the run's start, if it has one."""
        self._devices, self.start = devices, start
        return self

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for helper in self._helpers:
            helper.stop()

    def progress(self, what: str, done: float, total: int) -> None:
        """Pass on how far a device is; raise what went wrong in a worker, so that nobody computes in vain."""
        with self._change:
            if self._error is not None:
                raise self._error
            self._progress(what, done, total)

    def answer(self, tasks: list[Task], progress: Progress = silent) -> dict[int, bytes]:
        """Return the reply of every task's device.

        Raises:
            EdgetuneError: what a device raised, here or in a worker.
        """
        with self._change:
            self._progress = progress
            self._replies.clear()
            self._waiting.extend(tasks)
            self._change.notify_all()
        recalled: bytes | None = None
        while (task := self._own(len(tasks))) is not None:
            device = self._devices[task.device]
            if (
                task.recall is not None and task.recall != recalled
            ):  # the device may have been another process's
                device.receive(task.recall)
                recalled = task.recall
            reply = task.done_by(device, self.progress)
            with self._change:
                self._replies[task.device] = reply
        for lost in self._lost:
            self._listener(lost)
        self._lost.clear()
        return {task.device: self._replies[task.device] for task in tasks}

    def closed(self, round: int) -> None:
        """Do nothing."""

    def wait(self) -> None:
        """Wait until every worker that still lives has loaded the model."""
        with self._change:
            self._change.wait_for(lambda: self._error or all(one.ready or one.gone for one in self._helpers))
            if self._error is not None:
                raise self._error

    def _own(self, count: int) -> Task | None:
        """Return the next device for this process, or None once all have answered."""
        with self._change:
            self._change.wait_for(lambda: self._error or self._waiting or len(self._replies) == count)
            if self._error is not None:
                raise self._error
            return self._waiting.popleft() if self._waiting else None

    # The helpers' threads come in below.

    def take(self) -> Task | None:
        """Wait for a device to be done; None once there will be none."""
        with self._change:
            self._change.wait_for(lambda: self._closed or self._waiting)
            return None if self._closed else self._waiting.popleft()

    def done(self, task: Task, reply: bytes) -> None:
        """Take a worker's reply."""
        with self._change:
            self._replies[task.device] = reply
            self._change.notify_all()

    def failed(self, error: BaseException) -> None:
        """Take a worker's error."""
        with self._change:
            self._error = self._error or error
            self._change.notify_all()

    def changed(self) -> None:
        """Let whoever waits look again."""
        with self._change:
            self._change.notify_all()

    def lost(self, task: Task | None, code: int | None) -> None:
        """Put a device back whose worker has ended."""
        with self._change:
            if self._closed:
                return
            self._lost.append(WorkerLost(None if task is None else task.device, code))
            if task is not None:
                self._waiting.appendleft(task)
            self._change.notify_all()


class _Helper:
    """One worker process and the thread that talks with it."""

    def __init__(self, crew: Crew, opening: Message, share: Callable[[int], Message]) -> None:
        self._crew, self._opening, self._share = crew, opening, share
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._task: Task | None = None
        self.peak_bytes, self.ready, self.gone = 0, False, False

    def start(self) -> None:
        """Start the process, and the thread that waits for it."""
        command = [sys.executable, "-I", "-c", MAIN, *sys.path]
        errors = None if os.environ.get("EDGETUNE_TRACEBACK") else subprocess.DEVNULL
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
        )
        self._thread = threading.Thread(target=self._run, args=(self._process,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the process: by the end of its input, else by force."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError):  # it may be gone already
            cast(BinaryIO, process.stdin).close()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._thread is not None:
            self._thread.join()
        cast(BinaryIO, process.stdout).close()

    def _run(self, started: subprocess.Popen[bytes]) -> None:
        process = started
        told, said = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
        known, recalled = set[int](), b""
        try:
            send(told, self._opening)
            self._until(said, "ready")
            self.ready = True
            self._crew.changed()
            while (task := self._crew.take()) is not None:
                self._task = task
                if task.device not in known:
                    share = self._share(task.device)
                    send(told, Message(share.kind, {**share.head, "start": self._crew.start}, share.body))
                    known.add(task.device)
                if task.recall is not None and task.recall != recalled:
                    recalled = task.recall
                    send(told, Message("recall", {"device": task.device}, task.recall))
                send(told, told_task(task))
                self._crew.done(task, self._until(said, "reply").body)
                self._task = None
        except (EOFError, OSError, ValueError):
            self._crew.lost(self._task, process.wait())
        except Exception as error:
            self._crew.failed(error)
        finally:
            self.ready, self.gone, self.peak_bytes = False, True, 0
            self._crew.changed()

    def _until(self, said: BinaryIO, kind: str) -> Message:
        """Return the next message of a kind; pass on progress, raise errors."""
        while (message := receive(said)).kind == "progress":
            head = message.head
            self._crew.progress(head["what"], head["done"], head["total"])
        if message.kind != kind:
            raise to_error(message)
        self.peak_bytes = int(message.head["peak"])
        return message
