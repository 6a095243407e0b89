"""`edgetune status`: what a person sees of a run, once or while it goes on, in a terminal of any width or a pipe."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgetune.cli import status as command
from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError, HostError, UnreachableError
from edgetune.core.event_log import EventLog
from edgetune.core.events import Failed, RoundFinished, RunFinished, RunStarted
from edgetune.core.host_events import DeviceSeen, HostsRound
from edgetune.hosts.status import status_of
from edgetune.hosts.status_client import Address, address_of
from edgetune.report.units import size

START = RunStarted("edgetune server x", {"federation": {"rounds": 3}}, "fedkseed", "b", 0, {}, 1)
ROUND = RoundFinished(1, [0, 1], 2.5, 2.25, [10, 11], [100, 100], 0, "d", 1.0, 1)
NETWORK = HostsRound(1, 2, 1000, [0, 1], {"2": "offline"}, [3], {"0": 150}, {"0": 600})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run across hosts after its first round; this process plays its server."""
    log = EventLog(tmp_path / "events.jsonl")
    for event in (START, DeviceSeen(None, "refused", "no \x1b[31mkey"), NETWORK, ROUND):
        log(event)
    everybody = list(range(1000))
    told = {
        "pid": os.getpid(), "phase": "asking", "round": 2, "rounds": 3, "asked": everybody, "heard": everybody[:990],
        "online": everybody, "registered": 1000, "since": time.time(),
    }  # fmt: skip
    (tmp_path / "status.json").write_text(json.dumps(told))
    return tmp_path


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., io.StringIO]:
    """Play a terminal, and let no time pass between two looks but do `each`."""

    def play(width: int = 80, each: Callable[[], object] = lambda: None, *, tty: bool = True) -> io.StringIO:
        shown = io.StringIO()
        made = partial(Console, force_terminal=tty, width=width, height=30, file=shown, color_system=None)
        monkeypatch.setattr(command, "Console", made)
        monkeypatch.setattr(command.time, "sleep", lambda seconds: each())
        return shown

    return play


def test_a_status_says_round_devices_losses_bytes_and_reasons(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "fedkseed: edgetune server x" in shown
    assert f"running, asking (process {os.getpid()})" in shown
    assert re.search(r"round +2 of 3; 1 whole", shown)
    assert "1,000 online of 1,000 registered: 0 1 2 3 4 5 6 7 ... (1,000)" in shown
    assert "990 answered, waiting for 990 991 992 993 994 995 996 997 ... (10)" in shown
    assert "round 1: 2.2500" in shown
    assert f"{size(21)} up, {size(200)} down" in shown
    assert f"{size(150)} up, {size(600)} down, {750 / 221:.2f} times the payload" in shown
    assert "1 offline" in shown
    assert "1 no ?[31mkey" in shown
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) < 160


def test_json_is_the_object_itself(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["status", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == status_of(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": "killed"}, "killed: the server's process"),
        ({"state": "unfinished"}, "not finished: still going, or killed"),
        ({"state": "failed", "failure": "the disk is full"}, "failed: the disk is full"),
        ({"state": "away", "failure": "it hung up"}, "it hung up; it said last:"),
    ],
)
def test_every_state_is_a_sentence(folder: Path, change: dict[str, Any], said: str) -> None:
    rows = dict(command.rows_of({**status_of(folder), **change}))
    assert said in rows["state"].plain


def test_a_run_in_one_process_has_no_rows_of_a_network(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for event in (START, ROUND, RunFinished(1.0)):
        log(event)
    rows = dict(command.rows_of(status_of(tmp_path)))
    assert set(rows) == {"run", "state", "round", "held-out loss", "train loss", "payload"}
    assert rows["state"].plain.startswith("finished; last event ")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_a_live_view_fits_and_ends_with_the_run(
    folder: Path, width: int, terminal: Callable[..., io.StringIO]
) -> None:
    looks = list[int]()

    def each() -> None:
        looks.append(1)
        if len(looks) == 3:
            EventLog(folder / "events.jsonl")(RunFinished(9.0))
            (folder / "status.json").unlink()

    shown = terminal(width, each)
    assert execute(["status", str(folder), "--watch"]) == 0
    assert len(looks) == 3
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "\n", shown.getvalue()).splitlines()
    assert max(map(len, lines)) <= width
    assert "finished" in "\n".join(lines[-30:])


def test_where_nothing_can_be_drawn_over_only_changes_are_printed(
    folder: Path, terminal: Callable[..., io.StringIO]
) -> None:
    log, looks = EventLog(folder / "events.jsonl"), list[int]()

    def each() -> None:
        looks.append(1)
        if len(looks) == 4:
            log(replace(ROUND, round=2, loss=1.75))
        if len(looks) == 8:
            log(Failed("the disk is full", 6))
            (folder / "status.json").unlink()

    shown = terminal(80, each, tty=False)
    assert execute(["status", str(folder), "--watch"]) == 0
    lines = shown.getvalue().splitlines()
    assert len(lines) == 3
    assert "round 1: 2.2500, 2: 1.7500" in lines[1]
    assert "failed: the disk is full" in lines[2]


def test_json_of_a_watch_is_an_object_a_line(
    folder: Path, terminal: Callable[..., io.StringIO], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(
        80, lambda: EventLog(folder / "events.jsonl")(RunFinished(9.0)) or (folder / "status.json").unlink()
    )
    assert execute(["status", str(folder), "--watch", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["state"] for one in found] == ["running", "finished"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_watch_ends_with_control_c_in_order(folder: Path, number: int, code: int) -> None:
    arguments = [sys.executable, "-m", "edgetune", "status", str(folder), "--watch"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in error) == (code, False)
    assert (error == "") == (code == 0)


def test_a_server_that_was_there_may_be_away_for_a_while(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, answers = (
        [0.0],
        [status_of(folder), UnreachableError("it hung up", where="x:1"), status_of(folder)],
    )

    def now() -> dict[str, Any]:
        answer = answers.pop(0) if answers else UnreachableError("no server there", where="x:1")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(command.time, "monotonic", lambda: clock[0])
    ask = command._patient(now)
    assert [ask()["state"] for _ in range(3)] == ["running", "away", "running"]
    clock[0] += command.AWAY / 2
    assert ask()["state"] == "away"
    clock[0] += command.AWAY
    with pytest.raises(UnreachableError):
        ask()
    with pytest.raises(UnreachableError, match="no server"):
        command._patient(now)()


def test_a_server_that_left_after_its_last_round_ends_the_watch(folder: Path) -> None:
    away = {**status_of(folder), "state": "away", "failure": "it hung up"}
    assert not command._over(away)
    assert command._over({**away, "done": 3})


def test_a_server_that_turns_us_away_is_not_asked_again() -> None:
    def now() -> dict[str, Any]:
        raise HostError("the server does not know this token")

    with pytest.raises(HostError, match="token"):
        command._patient(now)()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nothing"], 3, "no such folder, and not the address of a server"),
        (["."], 3, "no run in this folder"),
        (["localhost:1"], 2, "who the server is cannot be known (give --certs"),
        (["localhost:1", "--certs", "nothing"], 2, "cannot read the token"),
        (["localhost:99999"], 2, "not the address of a server"),
        (["localhost:1", "--insecure"], 11, "no server there"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_code(
    arguments: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert execute(["status", *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert (said in error, error.count("\n")) == (True, 1)


def test_a_folder_with_the_name_of_a_host_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "host:1").mkdir()
    EventLog(tmp_path / "host:1" / "events.jsonl")(START)
    monkeypatch.chdir(tmp_path)
    assert execute(["status", "host:1"]) == 0


def test_a_status_needs_no_torch(folder: Path) -> None:
    script = (
        "import sys; from edgetune.cli.app import execute; code = execute(sys.argv[1:]); "
        "sys.exit('torch' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "status", str(folder)], capture_output=True, timeout=120
    )
    assert done.returncode == 0


def test_addresses() -> None:
    assert address_of("pi.local:9092") == Address("pi.local", 9092)
    assert str(address_of("https://[::1]:9092/")) == "[::1]:9092"
    for wrong in (
        "host",
        "host:0",
        "host:70000",
        "::1:9092",
        "host:x",
        "",
        "a b:1",
        "user@host:1",
        "h:1/path",
    ):
        with pytest.raises(ConfigError, match="not the address"):
            address_of(wrong)
