"""Two processes with one device's key: neither corrupts a run, and the run does not stop for them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra flower is not installed")
from engines import certified, node, serving
from memory_link import closed, task

from edgetune.core.events import Event
from edgetune.federation.pipes import Message
from edgetune.hosts.envelope import seal, unseal
from edgetune.hosts.flower.serving import Serving
from edgetune.hosts.kinds import OPEN, OPENED, OVER, REPLY
from edgetune.hosts.remote import Remote
from edgetune.hosts.waiting import Patience


class Process(threading.Thread):
    """A device's process with a stub for a model, and what it says of itself."""

    def __init__(self, link: Serving, certs: Path, device: int, name: str, seconds: float = 0.0) -> None:
        super().__init__(daemon=True)
        self._link, self._certs, self._device, self._seconds = link, certs, device, seconds
        self.name, self.told, self.over = name, list[str](), threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            key, ca = self._certs / f"keys/{self._device}.key", self._certs / "ca.pem"
            with node(self._link, key, ca, self.told.append) as post:
                while not self.over.is_set():
                    came = post.receive()
                    if came is None:
                        time.sleep(0.05)
                        continue
                    post.reply(came[0], seal(self._said(unseal(came[1]))))
        except BaseException as error:
            self.error = error

    def _said(self, message: Message) -> Message:
        if message.kind == OVER:
            self.over.set()
        if message.kind == OPEN:
            return Message(OPENED, {"examples": 5})
        time.sleep(self._seconds)
        return Message(REPLY, {}, self.name.encode())


def test_two_processes_of_one_key_count_as_one_device_and_a_round_ends(tmp_path: Path) -> None:
    certs, told = certified(tmp_path / "certs", 2), list[Event]()
    with serving(certs) as link:
        remote = Remote(
            link, range(2), Patience(2, 1, 8.0), listener=told.append, changed=lambda: None, known={}
        )
        processes = [
            Process(link, certs, *one) for one in ((0, "alone"), (1, "first", 0.3), (1, "second", 0.3))
        ]
        for one in processes:
            one.start()
        remote.open(Message(OPEN, {}))
        remote.wait(2)
        heard = Counter[str]()
        begin = time.monotonic()
        for round in range(1, 4):
            up = remote.answer([task(0, round), task(1, round)])
            event = closed(remote, told, round)
            assert up[0] == b"alone"
            assert up.get(1, b"first") in (b"first", b"second")
            assert sorted(up) == event.accepted == sorted(remote.heard)
            heard.update(one.decode() for one in up.values())
        print(heard, time.monotonic() - begin, [one.told for one in processes], told)
        assert heard["alone"] == 3
        for one in processes:
            one.over.set()
        remote.close()
        for one in processes:
            one.join(10)
        assert [one.error for one in processes] == [None] * 3
