"""An event log is a file that anyone may have written: a report of it, or one typed line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from edgetune.cli.app import execute
from edgetune.core.errors import DataError
from edgetune.core.events import Event, Failed, Precision, RunResumed
from edgetune.core.export_events import ExportPlanned
from edgetune.report.html import render
from edgetune.report.summary import summarise, to_json
from edgetune.report.table import print_result

from .logs import full_run, hosts_run

EVENTS: list[Event] = [
    *full_run(),
    *hosts_run()[1:-1],
    RunResumed(3),
    Precision("float16", 1e-3, 0.9),
    ExportPlanned("llama", "Q4_0", 1000, 256, 10, 10, 0, ["a note"]),
    Failed("it failed", 9),
]
LINES: list[dict[str, Any]] = [
    {"event": event.kind, "time": 1_790_000_000.0 + number, **asdict(event)}
    for number, event in enumerate(EVENTS)
]


def report(lines: list[Any]) -> None:
    summary = summarise(json.loads(json.dumps(lines)))
    print_result(Console(file=StringIO(), width=80), summary)
    render(summary).encode("utf-8")
    json.dumps(to_json(summary), allow_nan=False)


def test_the_log_itself_makes_a_report() -> None:
    report(LINES)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"deeper": value}
    return value


ODD: dict[str, tuple[str, str, Any]] = {
    "a loss that is text": ("stage", "loss", "low"),
    "a loss that is missing": ("stage", "loss", None),
    "a loss that is a list": ("round", "loss", [1.0]),
    "a loss beyond all numbers": ("round", "train_loss", 10**400),
    "a loss beyond all axes": ("round", "train_loss", 1e308),
    "a size that is a fraction": ("stage", "size_bytes", 1.5),
    "a size below nothing": ("stage", "size_bytes", -1),
    "a size beyond all disks": ("stage", "size_bytes", 2**80),
    "payloads that are no list": ("round", "payload_up_bytes", 7),
    "payloads that are text": ("round", "payload_up_bytes", ["many"]),
    "a name that is a number": ("layer", "name", 7),
    "a truth value that is a number": ("layer", "fallback", 1),
    "a number that is a truth value": ("round", "round", True),
    "alternatives that are a list": ("traffic", "alternatives", []),
    "alternatives of another form": ("traffic", "alternatives", {"x": 3}),
    "a configuration that is text": ("run_started", "config", "none"),
    "a configuration without a bottom": ("run_started", "config", nested(200)),
    "an online count that is text": ("hosts_round", "online", "many"),
    "reasons that are a list": ("hosts_round", "unanswered", ["offline"]),
    "bytes on a socket that are text": ("hosts_round", "transport_up_bytes", {"1": "many"}),
    "a device that is text": ("device", "device", "the second"),
    "a time that is text": ("stage", "time", "noon"),
    "a time that never comes": ("stage", "time", float("inf")),
    "a time before all times": ("stage", "time", -1e30),
}


@pytest.mark.parametrize("kind", sorted(ODD))
def test_a_field_of_another_type_is_named(kind: str) -> None:
    event, name, value = ODD[kind]
    lines = [dict(line) for line in LINES]
    number = next(index for index, line in enumerate(lines) if line["event"] == event)
    lines[number][name] = value
    with pytest.raises(
        DataError, match=rf"line {number + 1} is damaged: (time|{name} of {event}) is"
    ) as caught:
        report(lines)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 0, -3.5, 1e-300])
@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "perplexity",
        "rouge_l",
        "seconds",
        "base_style_loss",
        "train_loss",
        "error",
        "kl",
        "kl_rare",
        "top_1",
    ],
)
def test_odd_numbers_are_shown(name: str, value: float) -> None:
    report([{**line, name: value} if name in line else line for line in LINES])


def test_lines_of_other_versions_are_left_out() -> None:
    report([{"event": "tomorrow", "x": [1]}, {"event": "stage", "time": 0}, {}, *LINES, {"event": ["stage"]}])
    with pytest.raises(DataError, match="line 2 is not an event"):
        report([{}, [1, 2], *LINES])


def test_halves_of_characters_are_replaced() -> None:
    lines = [{**line, "prompt": "\ud800", "answer": "a\udfffb", "command": "\ud83d"} for line in LINES]
    report(lines)


def mutations() -> st.SearchStrategy[tuple[int, str, Any]]:
    values = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        st.text(max_size=8),
        st.lists(st.integers(-2, 2**40), max_size=3),
        st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
        st.sampled_from([nested(31), nested(40), [[]] * 3, {"a": {"b": "c"}}]),
    )
    names = sorted({name for line in LINES for name in line})
    return st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(names), values)


@given(st.lists(mutations(), min_size=1, max_size=6), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_changed_logs_make_a_report_or_one_typed_line(
    changes: list[tuple[int, str, Any]], drop: bool
) -> None:
    lines = [dict(line) for line in LINES]
    for number, name, value in changes:
        if drop:
            lines[number].pop(name, None)
        elif name in lines[number]:
            lines[number][name] = value
    try:
        report(lines)
    except DataError as error:
        said: Callable[[], str] = error.__str__
        if "\n" in said():
            raise AssertionError(said()) from error


def test_the_command_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.dumps(line) for line in LINES]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert execute(["report", str(tmp_path)]) == 0
    (tmp_path / "events.jsonl").write_text(
        "\n".join([*lines[:1], lines[1].replace('"loss": 3.41', '"loss": "low"'), *lines[2:]]) + "\n",
        encoding="utf-8",
    )
    capsys.readouterr()
    assert execute(["report", str(tmp_path)]) == 3
    assert (
        "events.jsonl: line 2 is damaged: loss of stage is a text instead of a number"
        in capsys.readouterr().err
    )
