"""A run that goes on tells its base row again; one with anything else changed measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.event_log import EventLog
from edgetune.core.events import RunStarted, Sample, StageFinished
from edgetune.run.earlier import measured_before

START = RunStarted(
    "edgetune", {"seed": 1, "data": {"held_out": 4}}, "fedkseed", "abc", 1, {"torch": "2"}, 10, "cpu", 1
)
ROW = StageFinished("base", 1.5, 4.5, 20.0, 100, 200, 3.0, records=4)
ANSWERS = [Sample("base", f"prompt {at}", "expected", "answer") for at in range(2)]


def log(folder: Path, *events: Any) -> Path:
    path = folder / "events.jsonl"
    write = EventLog(path)
    for event in events:
        write(event)
    return path


def test_the_row_and_its_answers_are_those_of_an_earlier_start(tmp_path: Path) -> None:
    tuned = [replace(ROW, name="tuned", loss=1.0), Sample("tuned", "prompt", "expected", "better")]
    path = log(tmp_path, START, ROW, *ANSWERS, *tuned, replace(START, command="again"))
    assert measured_before(path, "base") == (ROW, ANSWERS)


def test_a_start_that_was_killed_between_two_answers_does_not_hide_the_second(tmp_path: Path) -> None:
    path = log(tmp_path, START, ROW, *ANSWERS, START, ROW, ANSWERS[0], START)
    assert measured_before(path, "base") == (ROW, ANSWERS)


@pytest.mark.parametrize(
    "change",
    [{"config": {"seed": 1, "data": {"held_out": 5}}}, {"base_digest": "abd"}, {"versions": {"torch": "3"}},
     {"device": "cuda"}, {"threads": 2}, {"method": "fedit"}],
)  # fmt: skip
def test_another_run_measures_again(tmp_path: Path, change: dict[str, Any]) -> None:
    assert measured_before(log(tmp_path, START, ROW, *ANSWERS, replace(START, **change)), "base") is None


def test_a_first_start_measures(tmp_path: Path) -> None:
    assert measured_before(log(tmp_path, START), "base") is None


def test_a_row_of_another_version_is_measured_again(tmp_path: Path) -> None:
    path = log(tmp_path, START)
    with path.open("a") as file:
        file.write('{"event": "stage", "name": "base", "loss": 1.0}\n')
    EventLog(path)(START)
    assert measured_before(path, "base") is None
