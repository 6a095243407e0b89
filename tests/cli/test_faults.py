"""Bad input on the command line: one line, the documented exit code, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core import files
from edgetune.core.event_log import read_events

SMALL = [
    "--set", "federation.devices=3", "--set", "federation.participation=0.4", "--set", "federation.rounds=1",
    "--set", "data.held_out=4", "--set", "data.calibration=4", "--set", "data.max_tokens=64",
    "--set", "split.kind=iid", "--set", "method.local_steps=2", "--set", "evaluation.max_new_tokens=4",
]  # fmt: skip
RESULTS = {"tuned.ledger", "model.gguf", "manifest.json"}


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Forty instruction records over two categories."""
    path = tmp_path / "records.jsonl"
    rows = [
        {"instruction": f"say {i}", "context": "", "response": "yes sir", "category": "ab"[i % 2]}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run a command that must fail; return its one line."""

    def check(arguments: list[str], code: int) -> str:
        got = execute(arguments)
        error = capsys.readouterr().err
        assert got == code, error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert "Traceback" not in error
        left = {path.name for path in (tmp_path / "out").rglob("*")} if (tmp_path / "out").is_dir() else set()
        assert not left & RESULTS
        assert not [name for name in left if name.startswith(".")]
        return error

    return check


def federate(folder: Path | str, data: Path, out: Path, *more: str) -> list[str]:
    return [
        "federate",
        "fedkseed",
        "--model",
        str(folder),
        "--data",
        str(data),
        "--out",
        str(out),
        *SMALL,
        *more,
    ]


def test_a_good_command_succeeds(
    save_tiny: Callable[..., Path], records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(federate(save_tiny(), records, tmp_path / "out", "--quiet")) == 0, capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "events.jsonl",
        "tuned.ledger",
        "report.html",
    }


def test_a_wrong_model_folder(refused: Callable[..., str], records: Path, tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused(federate(tmp_path / "nowhere", records, tmp_path / "out"), 4)


def test_corrupted_safetensors(
    refused: Callable[..., str], save_tiny: Callable[..., Path], records: Path, tmp_path: Path
) -> None:
    weights = save_tiny() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused(federate(weights.parent, records, tmp_path / "out"), 4)


def test_a_broken_line(
    refused: Callable[..., str], save_tiny: Callable[..., Path], records: Path, tmp_path: Path
) -> None:
    lines = records.read_text().splitlines()
    lines[6] = lines[6][:-3]
    records.write_text("\n".join(lines))
    assert "7" in refused(federate(save_tiny(), records, tmp_path / "out"), 3)


def test_a_missing_column(
    refused: Callable[..., str], save_tiny: Callable[..., Path], records: Path, tmp_path: Path
) -> None:
    records.write_text(records.read_text().replace('"response"', '"reponse"'))
    error = refused(federate(save_tiny(), records, tmp_path / "out"), 3)
    assert "response" in error
    assert "reponse" in error


def test_an_unknown_key(refused: Callable[..., str], records: Path, tmp_path: Path) -> None:
    error = refused(federate("embedded", records, tmp_path / "out", "--set", "federation.round=3"), 2)
    assert "federation.round" in error
    assert "did you mean 'rounds'" in error


def test_a_negative_learning_rate(
    refused: Callable[..., str], save_tiny: Callable[..., Path], records: Path, tmp_path: Path
) -> None:
    assert "-0.1" in refused(federate(save_tiny(), records, tmp_path / "out", "--lr", "-0.1"), 2)


def test_an_unknown_method_and_option(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "fedkseed" in refused(["federate", "fedkseeed", "--out", str(tmp_path / "out")], 2)
    assert "--rounds" in refused(["run", "--roundz", "3"], 2)


def test_an_output_folder_that_is_a_file(
    refused: Callable[..., str], save_tiny: Callable[..., Path], records: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("mine")
    assert "taken" in refused(federate(save_tiny(), records, tmp_path / "taken"), 6)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_read_only_output_folder(refused: Callable[..., str], records: Path) -> None:
    # Permissions do not stop root, who runs many CI machines; a kernel file system does.
    assert "/proc" in refused(federate("embedded", records, Path("/proc/edgetune")), 6)


def test_a_full_disk(
    refused: Callable[..., str],
    save_tiny: Callable[..., Path],
    records: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(files.os, "fsync", full)
    assert "No space left" in refused(federate(save_tiny(), records, tmp_path / "out"), 6)


def test_a_ledger_of_another_base(
    refused: Callable[..., str],
    save_tiny: Callable[..., Path],
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert execute(federate(save_tiny(), records, tmp_path / "run", "--quiet")) == 0
    capsys.readouterr()
    other, target = save_tiny(seed=1), tmp_path / "out" / "model.gguf"
    ledger = str(tmp_path / "run" / "tuned.ledger")
    command = [
        "compress",
        str(other),
        "--ledger",
        ledger,
        "--data",
        str(records),
        "--out",
        str(target),
        *SMALL,
    ]
    error = refused(command, 5)
    assert "tuned.ledger" in error


def test_a_folder_of_another_run(
    refused: Callable[..., str],
    save_tiny: Callable[..., Path],
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_tiny()
    assert execute(federate(folder, records, tmp_path / "run", "--quiet")) == 0
    before = (tmp_path / "run" / "tuned.ledger").read_bytes()
    capsys.readouterr()
    refused(federate(folder, records, tmp_path / "run", "--seed", "7"), 5)
    assert (tmp_path / "run" / "tuned.ledger").read_bytes() == before


def test_a_run_folder_that_is_none(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "events.jsonl" in refused(["report", str(tmp_path / "empty")], 3)


def test_a_bug_is_one_line_too(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[str]:
        raise RuntimeError("surprise")

    monkeypatch.setattr("edgetune.methods.cards.cards", broken)
    assert "surprise" in refused(["methods"], 70)


def test_a_refused_run_leaves_the_old_one_untouched(
    refused: Callable[..., str],
    save_tiny: Callable[..., Path],
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_tiny()
    assert execute(federate(folder, records, tmp_path / "run", "--quiet")) == 0
    kept = ("events.jsonl", "manifest.json", "tuned.ledger", "summary.json")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in kept}
    capsys.readouterr()
    refused(federate(folder, records, tmp_path / "run", "--seed", "7"), 5)
    refused(federate(folder, tmp_path / "none.jsonl", tmp_path / "run"), 3)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in kept} == before


def test_fewer_rounds_than_the_folder_holds(
    refused: Callable[..., str],
    save_tiny: Callable[..., Path],
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_tiny()
    assert execute(federate(folder, records, tmp_path / "run", "--quiet", "--rounds", "2")) == 0
    capsys.readouterr()
    assert "2 rounds" in refused(federate(folder, records, tmp_path / "run", "--rounds", "1"), 2)


def test_a_device_node_is_never_replaced(refused: Callable[..., str], save_tiny: Callable[..., Path]) -> None:
    assert "not a regular file" in refused(["export", str(save_tiny()), "--out", "/dev/null"], 6)
    assert Path("/dev/null").is_char_device()


SWALLOWED = ["--set", "method.eps=1e-30", "--lr", "0.1"]


def test_a_radius_below_every_weight_is_refused_before_the_run(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    command = ["federate", "fedkseed", "--out", str(tmp_path / "out")]
    assert "survives rounding to float32" in refused([*command, *SWALLOWED], 2)


@pytest.mark.parametrize("option", [["--lr", "1e6"], [*SWALLOWED, "--set", "model.accept_rounding=true"]])
def test_useless_settings_end_in_a_typed_error(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["federate", "fedkseed", "--out", str(tmp_path), "--rounds", "1", "--set", "data.held_out=8"]
    assert execute([*command, "--set", "method.local_steps=4", *option]) == 9
    assert "error: " in capsys.readouterr().err


def test_a_resumed_federation_sends_the_same_bytes(
    save_tiny: Callable[..., Path], records: Path, tmp_path: Path
) -> None:
    folder = save_tiny()
    sizes = {}
    for name, plans in (("whole", ["3"]), ("killed", ["1", "3"])):
        for rounds in plans:
            assert execute(federate(folder, records, tmp_path / name, "--quiet", "--rounds", rounds)) == 0
        events = read_events(tmp_path / name / "events.jsonl")
        sizes[name] = [event["payload_down_bytes"] for event in events if event["event"] == "round"]
    assert sizes["whole"] == sizes["killed"]


def test_evaluate_uses_the_split_of_the_ledgers_run(
    save_tiny: Callable[..., Path], records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = save_tiny(), tmp_path / "run"
    assert execute(federate(folder, records, out, "--quiet", "--seed", "3")) == 0
    capsys.readouterr()
    assert execute(["evaluate", str(folder), "--ledger", str(out / "tuned.ledger")]) == 0
    tuned = json.loads((out / "summary.json").read_text())["stages"][-1]
    assert f"loss {tuned['loss']:.4f}" in capsys.readouterr().out


def test_an_output_name_that_is_empty_or_too_long(refused: Callable[..., str]) -> None:
    assert "empty" in refused(["federate", "fedkseed", "--out", ""], 6)
    assert "too long" in refused(["federate", "fedkseed", "--out", "x" * 300], 6)


def test_brackets_in_a_path_are_no_markup(
    save_tiny: Callable[..., Path], records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "[b]" / "[/b]"
    assert execute(federate(save_tiny(), records, out, "--quiet")) == 0
    assert "[b]/[/b]/tuned.ledger" in "".join(capsys.readouterr().out.split())


def test_a_second_run_in_the_same_folder(
    refused: Callable[..., str], save_tiny: Callable[..., Path], records: Path, tmp_path: Path
) -> None:
    command = federate(save_tiny(), records, tmp_path / "run", "--quiet")
    assert execute(command) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with files.owned_folder(tmp_path / "run"):
        assert "another run is at work" in refused(command, 6)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert execute(command) == 0


def test_what_a_killed_run_left_is_removed(
    save_tiny: Callable[..., Path], records: Path, tmp_path: Path
) -> None:
    command = federate(save_tiny(), records, tmp_path / "run", "--quiet")
    assert execute(command) == 0
    for name in (".edgetune-tuned-abcd1234.ledger", ".edgetune-probe", ".edgetune-report-x.html"):
        (tmp_path / "run" / name).write_bytes(b"half")
    assert execute(command) == 0
    assert not list((tmp_path / "run").glob(".*"))


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"rms_norm_eps": 0.1}),
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}),
        ("generation_config.json", {"eos_token_id": [0, 7]}),
        ("tokenizer_config.json", {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}),
    ],
)
def test_a_model_that_changed_between_two_starts(
    file: str,
    changes: dict[str, object],
    refused: Callable[..., str],
    save_tiny: Callable[..., Path],
    records: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = save_tiny()
    assert execute(federate(folder, records, tmp_path / "run", "--quiet")) == 0
    before = (tmp_path / "run" / "tuned.ledger").read_bytes()
    capsys.readouterr()
    change(folder / file, **changes)
    refused(federate(folder, records, tmp_path / "run", "--rounds", "2"), 5)
    assert (tmp_path / "run" / "tuned.ledger").read_bytes() == before


def deaf_to_nothing() -> None:
    """Undo what a shell does to background jobs, whose children inherit a deaf ear for SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


ENDINGS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)


@ENDINGS
def test_a_signal_that_a_library_makes_an_error_of_is_still_one(
    number: int, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing(*arguments: object, **options: object) -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except KeyboardInterrupt:
            raise ModuleNotFoundError("Could not import module 'PreTrainedModel'") from None

    monkeypatch.setattr("edgetune.cli.app.app", importing)
    monkeypatch.setattr(
        "edgetune.cli.app.UNTOUCHED", (signal.SIG_DFL, signal.default_int_handler, signal.SIG_IGN)
    )
    before = signal.getsignal(number)
    assert execute(["methods"]) == code
    assert signal.getsignal(number) is before
    assert capsys.readouterr().err == "error: interrupted; run the same command again to go on\n"


@ENDINGS
def test_a_signal_is_one_line_a_code_and_a_last_event(number: int, code: int, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "edgetune",
        "federate",
        "fedkseed",
        "--out",
        str(tmp_path),
        "--rounds",
        "500",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=deaf_to_nothing, **pipes) as run:  # type: ignore[call-overload]
        try:
            while "base:" not in (line := run.stdout.readline()):
                assert line, run.stderr.read()
            run.send_signal(number)
            _, error = run.communicate(timeout=600)
        finally:
            run.kill()
    assert run.returncode == code
    assert error == "error: interrupted; run the same command again to go on\n"
    last = list(read_events(tmp_path / "events.jsonl"))[-1]
    assert (last["event"], last["what"], last["exit_code"]) == ("failed", "interrupted", code)
    assert not list(tmp_path.glob(".*"))
