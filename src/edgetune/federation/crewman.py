"""A worker process: loads the base once and answers for devices until the run that started it ends.

Started by `federation.crew`; what it is told comes over its standard input, what it says goes over its standard output
(`federation.pipes`). It ends when its input does, in whatever way the run ended.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from typing import BinaryIO

from edgetune.core.allocator import return_freed_blocks
from edgetune.federation.pipes import Message, from_error, receive, send

EVERY = 0.2
"""Seconds between two messages of how far a device is."""


def main() -> None:
    """Serve until the input ends."""
    return_freed_blocks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run ends its workers
    say = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever a library prints is no message
    tasks: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.buffer, tasks), daemon=True).start()
    try:
        _serve(tasks, say)
    except BaseException as error:
        send(say, from_error(error))
        raise


def _listen(pipe: BinaryIO, tasks: queue.SimpleQueue[Message]) -> None:
    """Pass messages on; when there are no more, whatever this process computes is of no use to anybody."""
    while True:
        try:
            tasks.put(receive(pipe))
        except (EOFError, OSError):
            os._exit(0)


def _serve(tasks: queue.SimpleQueue[Message], say: BinaryIO) -> None:
    from edgetune.federation.device import Device
    from edgetune.federation.opening import examples_of, worker_of
    from edgetune.federation.tasks import task_of
    from edgetune.measure.machine import resident_bytes
    from edgetune.measure.memory import PeakMemory

    opening = tasks.get()
    worker = worker_of(opening)
    devices: dict[int, Device] = {}
    last = 0.0

    def progress(what: str, done: float, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last > EVERY:
            last = now
            send(say, Message("progress", {"what": what, "done": done, "total": total}))

    send(say, Message("ready", {"peak": resident_bytes()}))
    while True:
        task = tasks.get()
        id = int(task.head["device"])
        if task.kind == "share":
            pad_id, worker.start = int(opening.head["pad_id"]), str(task.head["start"])
            devices[id] = Device(id, examples_of(task), worker, pad_id=pad_id)
            continue
        if task.kind == "recall":
            devices[id].receive(task.body)
            continue
        with PeakMemory() as memory:
            reply = task_of(task).done_by(devices[id], progress)
        send(say, Message("reply", {"peak": memory.peak_bytes}, reply))
