"""A server and devices on this machine's loopback for benchmarks: started, followed by the server's log, measured."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "hosts"))
from processes import Footprint, Processes, Started, footprint, until

__all__ = ["Federation", "Footprint", "footprint", "median", "until"]
TIMED = Path(__file__).with_name("hosts_timed.py")
TINY = {
    "data.records": 64, "data.held_out": 8, "data.calibration": 8, "data.max_tokens": 64,
    "federation.participation": 1, "method.local_steps": 1, "method.batch_size": 1,
    "evaluation.every": 1_000_000, "evaluation.samples": 0, "evaluation.max_new_tokens": 1,
    "evaluation.answer_every": 0,
}  # fmt: skip
"""A round that is next to nothing, so that what is around it shows."""
FEDKSEED = {"method.pool": 64, "method.learning_rate": 2e-4, "method.eps": 3e-3}
"""Not searched for: nothing here depends on what is learnt."""


class Federation:
    """A federation in a temporary folder, as a context; its processes end with it.

    Args:
        devices: that have a key.
        rounds: that the server does.
        method: name.
        settings: of the recipe, beside those of `TINY`.
        wait: devices that must be there before the first round; all if not given.
    """

    def __init__(
        self,
        devices: int,
        rounds: int,
        method: str = "fedkseed",
        settings: dict[str, object] | None = None,
        *,
        wait: int | None = None,
    ) -> None:
        own = FEDKSEED if method == "fedkseed" else {}
        self.devices, self._method = devices, method
        self._settings: dict[str, object] = {**TINY, **own, "federation.rounds": rounds, **(settings or {})}
        self._wait = devices if wait is None else wait
        self._at: dict[str, Any] = {}

    def __enter__(self) -> Federation:
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.out = self.folder / "run"
        self._processes = Processes(self.folder).__enter__()
        records = max(64, 8 * self.devices)
        self._done("certs", "certs", "--devices", str(self.devices))
        self._done("split", "shares", "--devices", str(self.devices), "--set", f"data.records={records}")
        words = [f"--set={name}={value}" for name, value in self._settings.items()]
        self.server = self._processes.start(
            "server", "server", self._method, *words, "--out", self.out, "--certs", self.folder / "certs",
            "--listen", "127.0.0.1:0", "--wait", str(self._wait),
        )  # fmt: skip
        self.port = int(self.server.wait_for(r"listening on \S+:(\d+)", 120)[1])
        self.running = list[Started]()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._processes.__exit__(kind, error, trace)
        finally:
            self._temporary.cleanup()

    def join(self, count: int = 1, *, timed: bool = False, address: str | None = None) -> list[Started]:
        """Start further devices and wait until they are connected."""
        began = list[Started]()
        for id in range(len(self.running), len(self.running) + count):
            prefix = [sys.executable, str(TIMED)] if timed else []
            began.append(
                self._processes.start(
                    f"device{id}",
                    "device",
                    "--server",
                    address or f"127.0.0.1:{self.port}",
                    "--data",
                    self.folder / f"shares/{id}.jsonl",
                    "--key",
                    self.folder / f"certs/keys/{id}.key",
                    "--state",
                    self.folder / f"state{id}",
                    prefix=prefix,
                )
            )
            self.running.append(began[-1])
        for one in began:
            one.wait_for("connected to", 180)
        return began

    def ended(self, timeout: float = 280) -> None:
        """Wait for the end of the run."""
        assert self.server.wait(timeout) == 0, self.server.said[-2000:]
        for one in self.running:
            assert one.wait(60) == 0, one.said[-2000:]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the whole lines of the server's log that are of a kind."""
        try:
            lines = (self.out / "events.jsonl").read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [one for one in found if one["event"] == kind]

    def reached(self, round: int, timeout: float = 280) -> None:
        """Wait for the end of a round."""

        def there() -> bool:
            assert self.server.code in (None, 0), self.server.said[-2000:]
            assert all(one.code in (None, 0) for one in self.running), "a device has ended"
            return len(self.events("round")) >= round

        assert until(there, timeout, every=0.2), (
            f"no round {round} in {timeout} s: {self.server.said[-2000:]}"
        )

    def _done(self, *words: str) -> None:
        command = [sys.executable, "-m", "edgetune", *words]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def median(values: list[float]) -> float:
    """Return the middle value."""
    return sorted(values)[len(values) // 2]


def timed(what: Callable[[], object]) -> float:
    """Return how long something takes, seconds."""
    begin = time.perf_counter()
    what()
    return time.perf_counter() - begin
