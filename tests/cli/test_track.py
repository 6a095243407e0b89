"""`--track` on the command line: curves beside the log, once, also after a kill."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core.errors import OutputError
from edgetune.core.event_log import read_events

SMALL = [
    "--quiet", "--lr", "1e-5", "--set", "data.records=40", "--set", "data.held_out=4", "--set", "data.calibration=4",
    "--set", "method.local_steps=1", "--set", "evaluation.samples=0", "--set", "evaluation.max_new_tokens=4",
]  # fmt: skip
FEDERATE = ["federate", "fedkseed", "--devices", "2", "--participation", "1", "--rounds", "3", *SMALL]


def curves(folder: Path) -> dict[str, list[int]]:
    """Return the steps of each curve as the writer's library reads its messages."""
    from tensorboardX.proto import event_pb2

    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*tfevents*")):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
            data = data[16 + size :]
    return found


def test_a_run_that_goes_on_after_a_kill_has_every_step_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    from edgetune.federation import state

    command, written = (
        [*FEDERATE, "--out", str(tmp_path), "--track", "tensorboard"],
        state.write_ledger,
    )

    def killed(path: Path, ledger: state.Ledger) -> None:
        if ledger.round == 2:
            raise KeyboardInterrupt  # the round is told, and not kept
        written(path, ledger)

    monkeypatch.setattr(state, "write_ledger", killed)
    assert execute(command) == 130
    assert curves(tmp_path / "tensorboard")["loss/train"] == [1, 2]
    monkeypatch.setattr(state, "write_ledger", written)
    assert execute(command) == 0
    told = [event["round"] for event in read_events(tmp_path / "events.jsonl") if event["event"] == "round"]
    assert told == [1, 2, 2, 3]
    found = curves(tmp_path / "tensorboard")
    assert found["loss/train"] == found["bytes/payload_up"] == [1, 2, 3]
    assert found["stage/base/loss"] == found["stage/tuned/loss"] == [0]


def test_curves_go_where_the_option_says(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    track = ["--track", f"tensorboard:{tmp_path / 'curves'}"]
    tune = ["tune", "mezo", "--rounds", "1", *SMALL]
    assert execute([*tune, "--out", str(tmp_path / "out"), *track]) == 0
    assert curves(tmp_path / "curves")["loss/train"] == [1]
    assert not (tmp_path / "out" / "tensorboard").exists()


def test_a_tracker_that_cannot_be_written_any_more_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    from edgetune.report.tensorboard import TensorBoard

    def full(self: TensorBoard, points: object) -> None:
        raise OutputError("cannot write: No space left on device")

    monkeypatch.setattr(TensorBoard, "append", full)
    assert execute([*FEDERATE, "--out", str(tmp_path), "--track", "tensorboard"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("--track ends here, and the run goes on: cannot write: No space left on device") == 1


@pytest.mark.parametrize("command", ["run", "tune mezo", "federate fedkseed"])
def test_a_misspelt_tracker_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    out = tmp_path / "out"
    assert execute([*command.split(), "--out", str(out), "--track", "tensorbord"]) == 2
    assert "did you mean 'tensorboard'" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_library_is_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert execute([*FEDERATE, "--out", str(tmp_path / "out"), "--track", "tensorboard"]) == 8
    assert "edgetune[tensorboard]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
