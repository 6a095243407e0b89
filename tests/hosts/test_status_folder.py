"""How a run stands, from its folder: finished, failed, going on, killed, in one process, damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import DataError
from edgetune.core.event_log import EventLog
from edgetune.core.events import Event, Failed, RoundFinished, RunFinished, RunResumed, RunStarted
from edgetune.core.files import owned_folder, write_text_atomic
from edgetune.core.host_events import DeviceSeen, HostsRound
from edgetune.hosts.status import Statuses, status_of
from edgetune.hosts.status_fields import REPLY, checked

START = RunStarted(
    command="edgetune server", config={"federation": {"rounds": 5}}, method="fedkseed", base_digest="b", seed=0,
    versions={}, weights=1,
)  # fmt: skip
Write = Callable[[Iterable[Event]], Path]


def round_(number: int, loss: float | None = 2.0) -> RoundFinished:
    return RoundFinished(
        round=number, devices=[0, 1], train_loss=2.5, loss=loss, payload_up_bytes=[10, 11],
        payload_down_bytes=[100, 100], dropped=0, digest="d", seconds=1.0, peak_memory_bytes=1,
    )  # fmt: skip


def network(number: int, **more: Any) -> HostsRound:
    return replace(
        HostsRound(number, 2, 3, [0, 1], {"2": "offline"}, [2], {"0": 50, "1": 60}, {"0": 200, "1": 210}),
        **more,
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Append events to the log of a run."""

    def write(events: Iterable[Event]) -> Path:
        log = EventLog(tmp_path / "events.jsonl")
        for event in events:
            log(event)
        return tmp_path

    return write


def serving(folder: Path, **more: Any) -> None:
    """Write what a server writes while it runs; this process plays it."""
    told = {
        "pid": os.getpid(), "phase": "asking", "round": 2, "rounds": 5, "asked": [0, 1], "heard": [1],
        "online": [0, 1], "registered": 3, "since": time.time(), **more,
    }  # fmt: skip
    write_text_atomic(folder / "status.json", json.dumps(told))


def gone() -> int:
    """Return the number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_run_in_one_process_says_its_rounds_and_bytes(write: Write) -> None:
    found = status_of(write([START, round_(1), round_(2, None)]))
    assert (found["state"], found["method"], found["round"], found["rounds"]) == (
        "unfinished",
        "fedkseed",
        2,
        5,
    )
    assert (found["pid"], found["online"], found["registered"]) == (None, None, None)
    assert (found["losses"], found["train_losses"]) == ([[1, 2.0]], [[1, 2.5], [2, 2.5]])
    assert (found["payload_up_bytes"], found["payload_down_bytes"], found["transport_up_bytes"]) == (
        42,
        400,
        0,
    )


def test_a_run_across_hosts_says_who_is_there_and_what_the_sockets_carried(write: Write) -> None:
    folder = write([START, DeviceSeen(None, "refused", "no such key"), network(1), round_(1)])
    serving(folder)
    found = status_of(folder)
    assert (found["state"], found["phase"], found["round"], found["done"]) == ("running", "asking", 2, 1)
    assert (found["asked"], found["heard"], found["online"], found["registered"]) == ([0, 1], [1], [0, 1], 3)
    assert (found["transport_up_bytes"], found["transport_down_bytes"]) == (110, 410)
    assert (found["refused"], found["unanswered"], found["late"]) == ({"no such key": 1}, {"offline": 1}, 1)


def test_every_status_has_the_documented_keys_and_is_json(write: Write, tmp_path: Path) -> None:
    serving(tmp_path)
    first = status_of(tmp_path)
    assert (first["state"], first["method"]) == ("running", None), (
        "the server waits; its log is still to come"
    )
    for events in ([START], [network(1), round_(1, float("nan"))], [RunFinished(1.0)]):
        found = status_of(write(events))
        assert list(found) == list(first) == list(REPLY)
        assert checked(json.loads(json.dumps(found, allow_nan=False)), REPLY) == found
    assert found["losses"] == []


@pytest.mark.parametrize(
    ("end", "state", "failure"),
    [(RunFinished(3.0), "finished", None), (Failed("the disk is full", 6), "failed", "the disk is full")],
)
def test_an_end_is_the_logs_even_if_the_server_has_left_its_file(
    write: Write, end: Event, state: str, failure: str | None
) -> None:
    folder = write([START, round_(1), end])
    for told in ({"phase": "asking", "pid": gone()}, {"phase": "done"}):
        serving(folder, **told)
        found = status_of(folder)
        assert (found["state"], found["failure"]) == (state, failure)


def test_a_killed_server_is_called_so_until_it_runs_again(write: Write) -> None:
    folder = write([START, round_(1), Failed("interrupted", 130), START])
    serving(folder, pid=gone())
    assert (status_of(folder)["state"], status_of(folder)["failure"]) == ("killed", None)
    serving(folder)
    assert status_of(folder)["state"] == "running"


def test_another_process_with_the_number_of_a_killed_server_is_not_the_server(write: Write) -> None:
    folder = write([START])
    serving(folder, since=time.time() - 1e6)
    assert status_of(folder)["state"] == "killed"


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="this system does not show its locks")
def test_a_run_that_owns_its_folder_goes_on_whatever_its_number_is(write: Write) -> None:
    folder = write([START, round_(1)])
    assert status_of(folder)["state"] == "unfinished"
    with owned_folder(folder):
        if str(folder.stat().st_ino) not in Path("/proc/locks").read_text():
            pytest.skip("this file system does not show its locks")
        assert status_of(folder)["state"] == "running"
        serving(folder, pid=gone())
        assert status_of(folder)["state"] == "running", "its number is one of a container"
    assert status_of(folder)["state"] == "killed"
    with owned_folder(folder):
        assert status_of(write([RunFinished(1.0)]))["state"] == "finished"


def test_rounds_that_were_done_again_count_once_and_lost_ones_not(write: Write) -> None:
    folder = write([START, network(1), round_(1), network(2), round_(2, 1.0), network(3)])
    statuses = Statuses(folder)
    assert (statuses.now()["done"], statuses.now()["transport_up_bytes"]) == (2, 220)
    write([START])
    assert statuses.now()["done"] == 2, "until the attempt says where it goes on"
    write([RunResumed(1)])
    assert (statuses.now()["done"], statuses.now()["transport_up_bytes"]) == (1, 110)
    write([network(2, transport_up_bytes={"0": 7}), round_(2, 0.5)])
    assert statuses.now()["losses"] == [[1, 2.0], [2, 0.5]]
    assert statuses.now()["transport_up_bytes"] == 117
    assert statuses.now() == status_of(folder)


def test_another_run_in_the_same_folder_begins_with_nothing(write: Write) -> None:
    folder = write([START, DeviceSeen(0, "refused", "old"), round_(1), RunFinished(1.0)])
    write([replace(START, seed=1)])
    found = status_of(folder)
    assert (found["done"], found["payload_up_bytes"], found["refused"]) == (0, 0, {})
    write([round_(1, 7.0)])
    assert status_of(folder)["losses"] == [[1, 7.0]]


def test_the_rounds_of_a_status_are_those_of_the_summary(write: Write) -> None:
    from edgetune.report.summary import read_summary

    other = replace(START, seed=9)
    attempts = [
        [START, round_(1), round_(2)], [START], [START, RunResumed(1), round_(2, 1.5)], [START, round_(1, 9.0)],
        [other], [other, round_(1)], [other, RunResumed(1)], [START, RunResumed(0)], [other, Failed("x", 2), START],
    ]  # fmt: skip
    for attempt in attempts:
        summary = read_summary(write(attempt))
        losses = [[done.round, done.loss] for done in summary.rounds]
        assert status_of(write([]))["losses"] == losses, attempt


def test_a_look_reads_only_what_is_new_and_leaves_a_line_that_is_being_written(write: Write) -> None:
    folder = write([START, round_(1)])
    statuses, log = Statuses(folder), folder / "events.jsonl"
    assert statuses.now()["done"] == 1
    whole = log.read_bytes()
    log.write_bytes(b"x" * len(whole) + b'{"event": "round", "rou')
    assert statuses.now()["done"] == 1, "what was read before is not read again, half a line not yet"
    log.write_bytes(whole[: whole.index(b"\n") + 1])
    assert statuses.now()["done"] == 0, "a shorter log is another one"


@pytest.mark.parametrize(
    "line",
    ["[]", "{}", "nonsense", '{"event": 3}', '{"event": "round", "round": "one"}',
     '{"event": "run_resumed", "round": -1}',
     '{"event": "hosts_round", "round": 1, "online": 1, "registered": 1, "transport_up_bytes": []}', "[" * 100_000],
)  # fmt: skip
def test_a_damaged_log_is_one_typed_line(write: Write, line: str) -> None:
    folder = write([START])
    with (folder / "events.jsonl").open("a") as log:
        log.write(line + "\n")
    with pytest.raises(DataError, match=r"events\.jsonl: line 2 is no event, or damaged"):
        status_of(folder)


@pytest.mark.parametrize(
    "told",
    ["", "[]", "{}", '{"pid": 1}'] + [json.dumps({"pid": value}) for value in (-1, True, "1", 2**70, None)],
)
def test_a_damaged_status_file_is_one_typed_line(write: Write, told: str) -> None:
    folder = write([START])
    serving(folder)
    whole = json.loads((folder / "status.json").read_text())
    damaged = (
        json.dumps({**whole, **json.loads(told)}) if '"pid": ' in told and told != '{"pid": 1}' else told
    )
    (folder / "status.json").write_text(damaged)
    with pytest.raises(DataError, match=r"status\.json: not what a server writes"):
        status_of(folder)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run in this folder"):
        status_of(tmp_path)
    (tmp_path / "events.jsonl").touch()
    with pytest.raises(DataError, match="no run in this folder"):
        status_of(tmp_path)
