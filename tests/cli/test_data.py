"""Files as people have them, through the commands, without a word about their shape."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.cli.app import execute
from edgetune.core.event_log import read_events

QUICK = [
    option
    for key in (
        "method.local_steps=2", "evaluation.max_new_tokens=4", "evaluation.answer_every=0",
    )
    for option in ("--set", key)
]  # fmt: skip
QUICK += ["--rounds", "1"]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def questions(folder: Path, count: int = 30, name: str = "questions.jsonl") -> Path:
    rows = [
        {"question": f"Ann has {n} nets and buys 2. How many?", "answer": f"{n} + 2 = {n + 2}\n#### {n + 2}"}
        for n in range(count)
    ]
    return lines(folder / name, rows)


def task(folder: Path) -> Path:
    instances = [
        {
            "id": str(n),
            "input": f"The sea is {'calm' if n % 2 else 'wild'} on day {n}.",
            "output": [["bad", "good"][n % 2]],
        }
        for n in range(60)
    ]
    path = folder / "task.json"
    path.write_text(
        json.dumps({"Definition": ["Is the weather good or bad?"], "Instances": instances}, indent=1)
    )
    return path


def alpaca(folder: Path) -> Path:
    rows = [
        {"instruction": f"Name boat {n}.", "input": "at pier 3" * (n % 2), "output": f"Boat {n}"}
        for n in range(30)
    ]
    path = folder / "alpaca.json"
    path.write_text(json.dumps(rows))
    return path


def sharegpt(folder: Path) -> Path:
    def talk(n: int) -> list[dict[str, str]]:
        said = [
            ("human", f"Where is boat {n}?"),
            ("gpt", f"At pier {n}."),
            ("human", "And now?"),
            ("gpt", "At sea."),
        ]
        return [{"from": who, "value": what} for who, what in said]

    return lines(folder / "sharegpt.jsonl", [{"id": n, "conversations": talk(n)} for n in range(20)])


def messages(folder: Path) -> Path:
    def talk(n: int) -> list[dict[str, str]]:
        said = [
            ("system", "You guard a harbour."),
            ("user", f"Is {n} in?"),
            ("assistant", f"Boat {n} is in."),
        ]
        return [{"role": who, "content": what} for who, what in said]

    return lines(folder / "messages.jsonl", [{"messages": talk(n)} for n in range(20)])


def text(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text(
        "\n\n".join(f"Day {n}. The boats leave at dawn and come home at dusk." for n in range(30))
    )
    return path


def table(folder: Path) -> Path:
    path = folder / "table.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(
            [("prompt", "completion"), *((f'Say "{n}", please', f"{n}, sir") for n in range(30))]
        )
    return path


def data_of(out: Path) -> dict[str, Any]:
    return next(event for event in read_events(out / "events.jsonl") if event["event"] == "data")


@pytest.mark.parametrize("make", [questions, task, alpaca, sharegpt, messages, text, table])
def test_a_file_of_any_shape_tunes(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = make(tmp_path), tmp_path / "out"
    assert execute(["tune", "fedkseed", "--data", str(path), "-o", str(out), *QUICK]) == 0, (
        capsys.readouterr().err
    )
    assert (out / "tuned.ledger").stat().st_size > 0
    said = data_of(out)
    assert said["trained"] > said["held_out"] > 0
    assert said["notes"][0] in capsys.readouterr().out
    stages = {
        event["name"]: event for event in read_events(out / "events.jsonl") if event["event"] == "stage"
    }
    assert stages["tuned"]["loss"] != stages["base"]["loss"]
    assert (stages["base"]["metric"] == "accuracy") == (make is task)


@pytest.mark.parametrize("make", [messages, sharegpt, text])
def test_a_file_of_any_shape_runs_to_the_end(
    make: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert execute(["run", "--data", str(make(tmp_path)), "-o", str(out), *QUICK]) == 0, (
        capsys.readouterr().err
    )
    stages = {
        event["name"]: event for event in read_events(out / "events.jsonl") if event["event"] == "stage"
    }
    assert stages["llama.cpp"]["loss"] == pytest.approx(stages["compressed"]["loss"], rel=0.02)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert data_of(out)["notes"][0].split(":")[0] in page
    assert "NaN" not in page


def test_eight_records_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert execute(["run", "--data", str(questions(tmp_path, 8)), "-o", str(out), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert (
        "8 records (question and answer): 6 on one device, none set aside for calibration; 2 held out"
        in shown
    )
    assert "too few records to set some aside" in shown


def test_a_test_file_is_measured_whole_with_what_counts_in_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = questions(tmp_path), questions(tmp_path, 40, "test.jsonl")
    data = ["--train-data", str(train), "--test-data", str(test), "--extract", "last_number"]
    out = tmp_path / "out"
    assert execute(["tune", "fedkseed", *data, "-o", str(out), *QUICK]) == 3  # all of it is in the test
    assert "nothing is left to train on: all 30 records are in the test too" in capsys.readouterr().err
    test = lines(test, [{"question": f"Now {n}?", "answer": f"#### {n}"} for n in range(40)])
    assert execute(["tune", "fedkseed", *data, "-o", str(out), *QUICK]) == 0
    assert data_of(out)["held_out"] == 40
    assert data_of(out)["trained"] == 30
    assert "exact match 0.0" in capsys.readouterr().out
    ledger = ["--ledger", str(out / "tuned.ledger"), "--set", "evaluation.max_new_tokens=4"]
    assert execute(["evaluate", "embedded", *ledger]) == 0
    assert "40 held-out records" in capsys.readouterr().out
    assert execute(["evaluate", "embedded", *ledger, "--data", str(alpaca(tmp_path))]) == 0
    assert "6 held-out records" in capsys.readouterr().out  # neither that run's test nor its metric's data
    assert execute(["evaluate", "embedded", "--test-data", str(table(tmp_path)), *ledger[2:]]) == 0
    assert "30 held-out records" in capsys.readouterr().out


def test_columns_are_named_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"frage": f"Wo ist {n}?", "antwort": f"Hier {n}.", "thema": "ab"[n % 2]} for n in range(40)]
    path, out = lines(tmp_path / "odd.jsonl", rows), tmp_path / "out"
    command = ["federate", "fedkseed", "--data", str(path), "-o", str(out), *QUICK]
    assert execute(command) == 3
    error = " ".join(capsys.readouterr().err.split())
    assert "the columns here are: antwort, frage, thema (say it with --columns instruction=" in error
    assert not out.exists() or not list(out.iterdir())
    assert execute([*command, "--columns", "instruction=frage"]) == 3
    capsys.readouterr()
    assert execute([*command, "--columns", "frage"]) == 2
    assert "--columns: cannot read 'frage'" in " ".join(capsys.readouterr().err.split())
    assert execute([*command, "--columns", "instruction=frage,response=antwort,category=thema"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert {name for counts in manifest["categories"] for name in counts} == {"a", "b"}
