"""A server and devices as processes, the same run in this process, and what they leave in the log."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Processes, Started

from edgetune.core.ledger import read_ledger
from edgetune.hosts.certs import make_certs
from edgetune.hosts.shares import split_files
from edgetune.recipe.open_settings import packaged_recipe
from edgetune.recipe.recipe import Recipe, load_recipe

SMALL: dict[str, Any] = {
    "data.records": 60, "data.held_out": 4, "data.calibration": 4, "data.max_tokens": 48,
    "evaluation.max_new_tokens": 4, "evaluation.answer_every": 0, "split.kind": "iid", "split.minimum": 1,
    "method.local_steps": 2, "method.batch_size": 2,
}  # fmt: skip
OF_METHOD: dict[str, dict[str, Any]] = {
    "fedkseed": {"method.learning_rate": 1e-6, "method.pool": 64},
    "fedit": {"method.learning_rate": 1e-4},
}
"""Rates at which nothing diverges, so that nothing but the messages decides the digest."""


def free_port() -> int:
    """Return a port that nobody listens on; a server that is started again needs the same one."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


@dataclass
class Federation:
    """One run across processes of this machine.

    Args:
        folder: of everything.
        processes: start them.
        method: with a packaged recipe.
        devices: how many.
        rounds: how many.
        settings: of the recipe beside `SMALL` and the method's own, dotted.
        hosts: names of the server beside localhost.
    """

    folder: Path
    processes: Processes
    method: str
    devices: int = 2
    rounds: int = 4
    settings: Mapping[str, Any] | None = None
    hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.port, self._servers = free_port(), 0
        make_certs(self.certs, self.devices, self.hosts)
        split_files(self.recipe, self.folder / "shares")

    @property
    def said(self) -> dict[str, Any]:
        """Every setting, by its dotted name."""
        own = {"federation.participation": 1.0, "federation.rounds": self.rounds}
        return {**SMALL, **OF_METHOD[self.method], **own, **(self.settings or {})}

    @property
    def recipe(self) -> Recipe:
        """What the same run is in one process."""
        named = {name.replace(".", "__"): value for name, value in self.said.items()}
        return load_recipe(packaged_recipe(self.method), [], federation__devices=self.devices, **named)

    @property
    def certs(self) -> Path:
        """The folder of keys."""
        return self.folder / "certs"

    @property
    def out(self) -> Path:
        """The run's folder."""
        return self.folder / "run"

    def server_words(self, listen: str, *more: str | Path) -> list[str | Path]:
        """Return the server's command line."""
        settings = [word for name, value in self.said.items() for word in ("--set", f"{name}={value}")]
        return [
            "server",
            self.method,
            "--out",
            self.out,
            "--listen",
            listen,
            "--certs",
            self.certs,
            *more,
            *settings,
        ]

    def server(self, listen: str = "127.0.0.1", *more: str, prefix: Sequence[str] = ()) -> Started:
        """Return the server, which is not started yet."""
        return self.processes.ready(
            "server", *self.server_words(f"{listen}:{self.port}", *more), prefix=prefix
        )

    def device(
        self, number: int, server: str = "", *, prefix: Sequence[str] = (), more: Sequence[str | Path] = ()
    ) -> Started:
        """Return a device, which is not started yet."""
        return self.processes.ready(
            f"device-{number}", "device", "--server", server or f"127.0.0.1:{self.port}",
            "--data", self.folder / "shares" / f"{number}.jsonl", "--key", self.certs / "keys" / f"{number}.key",
            "--state", self.folder / "state" / str(number), *more, prefix=prefix,
        )  # fmt: skip

    @property
    def digest(self) -> str:
        """Of the run's ledger."""
        return read_ledger(self.out / "tuned.ledger").digest

    def events(self) -> list[dict[str, Any]]:
        """Return every line of the log that is whole."""
        lines = (self.out / "events.jsonl").read_bytes().split(b"\n")[:-1]
        return [json.loads(line) for line in lines]

    def last_of_rounds(self, kind: str) -> dict[int, dict[str, Any]]:
        """Return the events of a kind by round; of a round that was done twice, the later one, which counts."""
        return {one["round"]: one for one in self.events() if one["event"] == kind}

    @property
    def accepted(self) -> dict[int, list[int]]:
        """Devices whose replies count, by round."""
        return {round: one["accepted"] for round, one in self.last_of_rounds("hosts_round").items()}


def back_after(server: Started, shown: Path, begun: float, timeout: float = 60) -> float:
    """Return the seconds from a server's start to the first reply of a round that it hears.

    Args:
        server: that was started again.
        shown: its `status.json`, which may be the one of its former process.
        begun: when the server was started, `time.monotonic`.
        timeout: seconds.
    """
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if shown.exists():
            said = json.loads(shown.read_bytes())
            if said["pid"] == server.pid and said["heard"]:
                return time.monotonic() - begun
        assert server.code is None, server.said
        time.sleep(0.01)
    raise AssertionError(f"no round in {timeout} s: {server.said}")
