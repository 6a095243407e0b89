"""Edgetune in a process that kills itself with SIGKILL at a phase of a round.

    python killing.py PHASE:ROUND -- server fedkseed --out run ...

Of a server: before_sampling, after_sending, after_first_reply, before_commit, after_commit; ROUND counts from 1 and is
the run's own number, so that a server that goes on after round 3 begins at 4. Of a device: before_answering,
while_answering, after_answering; ROUND is then the number of the answer since the process started.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any


def die(phase: str, round: int) -> None:
    """End this process as a cut of the power would: nothing is flushed, nothing closed."""
    os.write(2, f"killed itself: {phase}, round {round}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


def wrapped(owner: Any, name: str, *, before: Callable[..., None] | None = None, after: Any = None) -> None:
    """Call something with a function's own arguments before it, and with its result and them after it."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    def outer(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before(*arguments, **named)
        result = inner(*arguments, **named)
        if after is not None:
            after(result, *arguments, **named)
        return result

    setattr(owner, name, outer)


def before_sampling(round: int) -> None:
    """Die when the server is asked to open the round."""
    from edgetune.federation.server import Server

    def look(server: Server, *rest: Any, **named: Any) -> None:
        if server.round + 1 == round:
            die("before_sampling", round)

    wrapped(Server, "open_round", before=look)


class Middle:
    """Dies in the middle of a round: the one place that knows how the server's remote hands are called.

    `edgetune.hosts.remote.Remote` calls `_sent(device)` for every message that was left for a device, and
    `_heard(device)` for every reply that arrived in time; `ready` are the devices that can take part.

    Args:
        round: in which.
        after_all_were_sent: when every device that the round asks and that is there has its message; else after the
            first reply.
    """

    def __init__(self, round: int, *, after_all_were_sent: bool) -> None:
        from edgetune.federation.server import Server
        from edgetune.hosts.remote import Remote

        self._round, self._now, self._asked, self._told = round, 0, set[int](), set[int]()
        wrapped(Server, "open_round", after=self._opened)
        if after_all_were_sent:
            wrapped(Remote, "_sent", after=self._sent)
        else:
            wrapped(Remote, "_heard", after=self._heard)

    def _opened(self, payloads: dict[int, bytes], server: Any, *rest: Any, **named: Any) -> None:
        self._now, self._asked, self._told = server.round + 1, set(payloads), set()

    def _sent(self, result: Any, remote: Any, device: int, *rest: Any, **named: Any) -> None:
        self._told.add(device)
        if self._now == self._round and self._told >= self._asked & {device, *remote.ready}:
            die("after_sending", self._round)

    def _heard(self, result: Any, remote: Any, device: int, *rest: Any, **named: Any) -> None:
        if self._now == self._round:
            die("after_first_reply", self._round)


def committing(phase: str, round: int) -> None:
    """Die when the round's ledger is about to be written, or when it has been."""
    from edgetune.federation import state

    def look(ledger: Any) -> None:
        if ledger.round == round:
            die(phase, round)

    if phase == "before_commit":
        wrapped(state, "write_ledger", before=lambda path, ledger, *rest, **named: look(ledger))
    else:
        wrapped(state, "write_ledger", after=lambda result, path, ledger, *rest, **named: look(ledger))


def answering(phase: str, count: int) -> None:
    """Die in a device's answer, the COUNT-th of this process: on entering it, after a step of it, once it is made."""
    from edgetune.core.progress import silent
    from edgetune.federation.device import Device

    answers = [0]

    def begin(*rest: Any, **named: Any) -> None:
        answers[0] += 1
        if phase == "before_answering" and answers[0] == count:
            die(phase, count)

    def end(*rest: Any, **named: Any) -> None:
        if phase == "after_answering" and answers[0] == count:
            die(phase, count)

    wrapped(Device, "answer", before=begin, after=end)
    if phase == "while_answering":
        inner = Device.answer

        def stepping(
            device: Any, payload: bytes, turn: Any = None, progress: Any = silent, choice: Any = None
        ) -> bytes:
            def tell(what: str, done: float, total: int) -> None:
                if answers[0] == count:
                    die(phase, count)
                progress(what, done, total)

            return inner(device, payload, turn, tell, choice)

        Device.answer = stepping  # type: ignore[method-assign]


PHASES: dict[str, Callable[[int], object]] = {
    "before_sampling": before_sampling,
    "after_sending": functools.partial(Middle, after_all_were_sent=True),
    "after_first_reply": functools.partial(Middle, after_all_were_sent=False),
    "before_commit": functools.partial(committing, "before_commit"),
    "after_commit": functools.partial(committing, "after_commit"),
    "before_answering": functools.partial(answering, "before_answering"),
    "while_answering": functools.partial(answering, "while_answering"),
    "after_answering": functools.partial(answering, "after_answering"),
}
SERVER = ("before_sampling", "after_sending", "after_first_reply", "before_commit", "after_commit")
DEVICE = ("before_answering", "while_answering", "after_answering")


def main() -> None:
    """Read PHASE:ROUND, arm it, and run edgetune's own main."""
    phase, _, round = sys.argv[1].partition(":")
    assert sys.argv[2] == "--", __doc__
    PHASES[phase](int(round or 1))
    sys.argv[:] = ["edgetune", *sys.argv[3:]]
    from edgetune.cli import main as edgetune

    edgetune()


if __name__ == "__main__":
    main()
