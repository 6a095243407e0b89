"""A run that climbs: one line that names `suggest`, its exit code, and what later stages go on with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core.errors import STOPPED, DivergenceError
from edgetune.core.event_log import read_events
from edgetune.core.ledger import read_ledger

SMALL = [
    "--quiet", "--rounds", "6", "--set", "data.held_out=8", "--set", "data.calibration=8",
    "--set", "method.local_steps=4", "--set", "evaluation.max_new_tokens=4", "--set", "evaluation.samples=0",
    "--set", "evaluation.answer_every=0",
]  # fmt: skip
COMMANDS = [["tune", "mezo"], ["federate", "fedkseed"], ["run"]]


def kinds(out: Path, kind: str) -> list[dict[str, object]]:
    return [one for one in read_events(out / "events.jsonl") if one["event"] == kind]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Held-out losses that rounds see, in this order."""
    script: list[float] = []
    monkeypatch.setattr("edgetune.federation.tuning.model_loss", lambda *_: script.pop(0))
    return script


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_it_goes_back_to_its_best_round_and_on_with_that(
    command: list[str], tmp_path: Path, scripted: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    scripted[:] = [0.15, 0.1, 0.4, 0.9]
    assert execute([*command, "--out", str(tmp_path), *SMALL]) == STOPPED
    said = capsys.readouterr().out
    assert said.count("back to round 2, the best") == 1
    assert "edgetune suggest" in said
    ledger = read_ledger(tmp_path / "tuned.ledger")
    assert ledger.round == 2
    (stop,) = kinds(tmp_path, "stopped")
    assert (stop["best"], stop["round"]) == (2, 4)
    names = [row["name"] for row in kinds(tmp_path, "stage")]
    assert names == (
        ["base", "tuned"] if command[0] != "run" else ["base", "tuned", "rounded", "compressed", "llama.cpp"]
    )
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    if command[0] == "run":
        return
    # The same command again is the same end, without a step.
    assert execute([*command, "--out", str(tmp_path), *SMALL]) == STOPPED
    assert len(kinds(tmp_path, "round")) == 4
    assert read_ledger(tmp_path / "tuned.ledger").digest == ledger.digest


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_a_run_that_never_learns_leaves_nothing_and_is_one_line(
    command: list[str], tmp_path: Path, scripted: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    scripted[:] = [30.0, 37.0]
    assert execute([*command, "--out", str(tmp_path), *SMALL]) == DivergenceError.exit_code
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "edgetune suggest" in said
    assert not list(tmp_path.glob("*.ledger"))
    assert kinds(tmp_path, "failed")
    scripted[:] = [0.1] * 6
    assert execute([*command, "--out", str(tmp_path), *SMALL, "--lr", "1e-5"]) == 0


def test_rates_that_diverge_really_are_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "tune",
        "mezo",
        "--out",
        str(tmp_path),
        *SMALL,
        "--lr",
        "0.01",
        "--set",
        "method.local_steps=20",
    ]
    assert execute(command) == DivergenceError.exit_code
    assert "edgetune suggest mezo" in capsys.readouterr().err
    rounds = kinds(tmp_path, "round")
    assert len(rounds) < 6
    assert all(not math.isfinite(float(str(one["loss"]))) or float(str(one["loss"])) > 0.3 for one in rounds)
