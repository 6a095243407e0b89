"""A run computes where it was told to, and goes on there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core.event_log import read_events
from edgetune.core.ledger import read_ledger
from edgetune.federation.load import load
from edgetune.models.embedded import EMBEDDED

SMALL = [
    "--quiet", "--rounds", "2", "--set", "data.held_out=8", "--set", "data.calibration=8",
    "--set", "method.local_steps=4", "--set", "evaluation.max_new_tokens=8",
]  # fmt: skip


def started(folder: Path) -> dict[str, object]:
    return next(one for one in read_events(folder / "events.jsonl") if one["event"] == "run_started")


@pytest.mark.parametrize("command", [["federate", "fedkseed"], ["tune", "lora"]])
def test_the_cpu_by_name_is_the_same_run(command: list[str], tmp_path: Path) -> None:
    for name, more in (("named", ["--device", "cpu"]), ("auto", [])):
        assert execute([*command, "--out", str(tmp_path / name), *SMALL, *more]) == 0
    ledgers = [(tmp_path / name / "tuned.ledger").read_bytes() for name in ("named", "auto")]
    assert len(ledgers[0]) == len(ledgers[1])
    assert started(tmp_path / "named")["device"] == "cpu"


def test_no_gpu_is_a_refusal_that_names_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert execute(["run", "--device", "cuda:3", "--out", str(tmp_path / "out")]) == 2
    assert "auto, cpu" in capsys.readouterr().err
    assert execute(["evaluate", "embedded", "--device", "gpu"]) == 2
    assert "model.device" in capsys.readouterr().err


def test_a_run_begun_elsewhere_is_not_gone_on_with_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["federate", "fedkseed", "--out", str(tmp_path), *SMALL]
    assert execute(command) == 0
    log = tmp_path / "events.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    moved = [one | {"device": "cuda"} if one["event"] == "run_started" else one for one in lines]
    log.write_text("".join(json.dumps(one) + "\n" for one in moved))
    assert execute([*command, "--rounds", "3"]) == 5
    assert "--device cuda" in capsys.readouterr().err


def test_streamed_weights_are_refused_on_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    command = ["run", "--device", "cuda", "--residency", "streamed", "--out", str(tmp_path / "out")]
    assert execute(command) == 2
    assert "--device cpu" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("command", [["federate", "fedkseed"], ["tune", "lora"], ["run"]])
def test_a_gpu_learns_what_the_cpu_learns(command: list[str], tmp_path: Path) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        assert execute([*command, "--device", device, "--out", str(tmp_path / device), *SMALL]) == 0
        rows = [one for one in read_events(tmp_path / device / "events.jsonl") if one["event"] == "stage"]
        found[device] = [row["loss"] for row in rows]
        assert started(tmp_path / device)["device"] == device
    assert found["cuda"] == pytest.approx(found["cpu"], abs=5e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["fedkseed", "mezo", "mezo_lora", "lora"])
def test_a_run_on_a_gpu_has_the_same_bits_every_time(method: str, tmp_path: Path) -> None:
    for name in ("once", "again"):
        assert execute(["federate", method, "--device", "cuda", "--out", str(tmp_path / name), *SMALL]) == 0
    digests = [read_ledger(tmp_path / name / "tuned.ledger").digest for name in ("once", "again")]
    assert digests[0] == digests[1]


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["fedkseed", "mezo", "lora"])
def test_a_ledger_gives_the_same_bits_on_either_device(method: str, tmp_path: Path) -> None:
    for device, other in (("cpu", "cuda"), ("cuda", "cpu")):
        out = tmp_path / device
        assert execute(["federate", method, "--device", device, "--out", str(out), *SMALL]) == 0
        load(EMBEDDED, out / "tuned.ledger", device=other)  # refuses a digest that is not the recorded one
