"""A process kills itself at the phase it is told to, and nowhere else."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import killing
import pytest
from killing import DEVICE, PHASES, SERVER
from processes import Processes

from edgetune.core.ledger import read_ledger
from edgetune.core.progress import silent
from edgetune.federation import state
from edgetune.federation.device import Device
from edgetune.federation.server import Server

SETTINGS = {
    "data.records": 40, "data.held_out": 4, "data.calibration": 4, "data.max_tokens": 48,
    "evaluation.max_new_tokens": 4, "method.local_steps": 2, "method.learning_rate": 1e-6, "method.pool": 64,
    "federation.devices": 4, "federation.participation": 0.5, "federation.rounds": 3, "split.kind": "iid",
}  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "committed"),
    [
        ("before_sampling:2", 1),
        ("after_commit:2", 2),
        ("while_answering:3", 1),  # two devices a round: the third answer is of round 2
        ("before_commit:4", 3),  # there is no such round
    ],
)
def test_a_run_dies_at_the_phase_of_the_round(tmp_path: Path, phase: str, committed: int) -> None:
    said = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    with Processes(tmp_path) as processes:
        words = ("federate", "fedkseed", "--quiet", "--out", tmp_path / "out", *said)
        run = processes.start("run", *words, killed_at=phase)
        ended = run.wait(120)
    assert ended == (-signal.SIGKILL if committed < 3 else 0), run.said
    assert (f"killed itself: {phase.replace(':', ', round ')}" in run.said) == (committed < 3)
    assert read_ledger(tmp_path / "out" / "tuned.ledger").round == committed


class Remote:
    """As the server's remote hands: what they do is noted."""

    happened: list[str]
    ready = (3, 5, 7)

    def _sent(self, device: int) -> None:
        self.happened.append(f"sent {device}")

    def _heard(self, device: int) -> None:
        self.happened.append(f"heard {device}")


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins for what phases wrap, gone after the test; deaths are noted among what happens."""
    found = list[str]()

    def open_round(server: Any, held: Any = None, busy: Any = ()) -> dict[int, bytes]:
        found.append("opened")
        return {3: b"", 5: b"", 9: b""}  # 9 is not there

    def answer(
        device: Any, payload: bytes, turn: Any = None, progress: Any = silent, choice: Any = None
    ) -> bytes:
        found.append("began")
        progress("step", 1, 2)
        found.append("ended")
        return payload

    module: Any = ModuleType("edgetune.hosts.remote")
    module.Remote = type("Remote", (Remote,), {"happened": found})
    monkeypatch.setitem(sys.modules, "edgetune.hosts.remote", module)
    monkeypatch.setattr(Server, "open_round", open_round)
    monkeypatch.setattr(Device, "answer", answer)
    monkeypatch.setattr(state, "write_ledger", lambda path, ledger: found.append("written"))
    monkeypatch.setattr(killing, "die", lambda phase, round: found.append(f"died {round}"))
    return found


def play(remote: Any, rounds: int) -> None:
    """What a server does, round after round."""
    for done in range(rounds):
        server: Any = SimpleNamespace(round=done)
        Server.open_round(server)
        for device in (3, 5):
            remote._sent(device)
        for device in (5, 3):
            remote._heard(device)
        state.write_ledger(Path("ledger"), SimpleNamespace(round=done + 1))  # type: ignore[arg-type]


ROUND = ["opened", "sent 3", "sent 5", "heard 5", "heard 3", "written"]


@pytest.mark.parametrize(
    ("phase", "at"),
    [
        ("before_sampling", [0]),
        ("after_sending", [3]),
        ("after_first_reply", [4, 6]),  # it would not have lived to hear the second
        ("before_commit", [5]),
        ("after_commit", [6]),
    ],
)
def test_a_server_dies_in_its_round_only(happened: list[str], phase: str, at: list[int]) -> None:
    PHASES[phase](2)
    play(sys.modules["edgetune.hosts.remote"].Remote(), 3)  # type: ignore[attr-defined]
    died = list(ROUND)
    for place in at:
        died.insert(place, "died 2")
    assert happened == ROUND + died + ROUND


@pytest.mark.parametrize(
    ("phase", "at"), [("before_answering", 0), ("while_answering", 1), ("after_answering", 2)]
)
def test_a_device_dies_in_its_answer_only(happened: list[str], phase: str, at: int) -> None:
    PHASES[phase](2)
    device: Any = SimpleNamespace()
    assert [Device.answer(device, payload, 0) for payload in (b"1", b"2", b"3")] == [b"1", b"2", b"3"]
    died = ["began", "ended"]
    died.insert(at, "died 2")
    assert happened == ["began", "ended", *died, "began", "ended"]


def test_every_phase_is_of_a_server_or_of_a_device() -> None:
    assert tuple(PHASES) == SERVER + DEVICE
