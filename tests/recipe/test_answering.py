"""Sequence-level distillation: a teacher's own greedy answers as records, for students of any vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgetune.cli.app import execute
from edgetune.core.errors import DataError
from edgetune.core.event_log import read_events
from edgetune.data.encode import encode_prompt
from edgetune.data.reading import load_records
from edgetune.measure.evaluate import generate
from edgetune.recipe.answering import answer_records
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.recipe import load_recipe

PLACES = ("Holm", "the mill", "the pier", "the harbour", "the dam", "the chapel", "the school", "the well")
VERBS = ("Which crop grows near", "What is measured at", "Who works at")
ASKED = [f"{verb} {place}?" for verb in VERBS for place in PLACES]
SETS = {"data.held_out": 6, "data.calibration": 4, "threads": 1, "evaluation.max_new_tokens": 40}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"instruction": one, "response": f"nobody knows, {n}", "category": "a"} for n, one in enumerate(ASKED)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def teacher(data: Path, **more: object) -> Prepared:
    settings = [f"{key}={value}" for key, value in (SETS | more).items()]
    return prepare(load_recipe(None, settings, data__source=str(data)), split=False)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_are_the_teachers_greedy_ones_to_what_is_not_held_out(
    questions: Path, tmp_path: Path
) -> None:
    prepared, out = teacher(questions), tmp_path / "answers.jsonl"
    done = answer_records(prepared, out)
    found = {one["instruction"]: one["response"] for one in lines_of(out)}
    held = {record.instruction for record in prepared.held_out}
    assert len(held) == done.held_out == 6
    assert done.kept + done.cut + done.empty == len(ASKED) - 6 - 4
    assert done.kept == len(found) > 9
    assert held.isdisjoint(found)
    # One prompt at a time through the evaluation's own generation, which knows nothing of this file.
    model, tokenizer = prepared.backbone.model, prepared.backbone.tokenizer
    for record in prepared.records:
        if record.instruction in found:
            prompt = encode_prompt(record, tokenizer, prepared.prompt, 400)
            (said,) = generate(model, tokenizer, [prompt], max_new_tokens=40, batch_size=1)
            assert found[record.instruction] == prepared.frame.answer(said)


def test_a_student_of_another_vocabulary_is_tuned_on_them(
    questions: Path, tmp_path: Path, save_tiny: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out, student = tmp_path / "answers.jsonl", save_tiny("gpt2")
    sets = [f"--set={key}={value}" for key, value in SETS.items()]
    assert (
        execute(["teach", "embedded", "--answers", "--data", str(questions), "--out", str(out), *sets]) == 0
    )
    said = capsys.readouterr().out
    assert "6 records are held out and were not asked" in said
    run = ["tune", "fedavg", "--model", str(student), "--data", str(out), "--rounds", "2", "--lr", "3e-3"]
    small = [
        "--set=data.held_out=2",
        "--set=data.calibration=2",
        "--set=threads=1",
        "--set=method.local_steps=4",
    ]
    few = ["--set=evaluation.max_new_tokens=2", "--set=method.batch_size=4"]
    assert execute([*run, *small, *few, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    losses = [
        one["train_loss"] for one in read_events(tmp_path / "run" / "events.jsonl") if one["event"] == "round"
    ]
    assert losses[1] < losses[0]


def test_a_conversation_keeps_what_was_said_before(tmp_path: Path) -> None:
    talks, out = tmp_path / "talks.jsonl", tmp_path / "answers.jsonl"
    said = [
        [
            {"role": "system", "content": "Answer as a clerk."},
            {"role": "user", "content": first},
            {"role": "assistant", "content": "Rice."},
            {"role": "user", "content": second},
            {"role": "assistant", "content": "Nobody."},
        ]
        for first, second in zip(ASKED[:12], ASKED[12:], strict=True)
    ]
    talks.write_text("".join(json.dumps({"messages": one}) + "\n" for one in said))
    prepared = teacher(talks, **{"data.held_out": 4})
    done = answer_records(prepared, out)
    read = load_records(str(out))
    assert len(read) == done.kept > 5
    before = {(record.history, record.asked) for record in prepared.records}
    assert {(record.history, record.asked) for record in read} <= before
    assert not {record.response for record in read} & {"Rice.", "Nobody."}


def test_answers_that_do_not_end_are_left_out_and_no_file_is_better_than_an_empty_one(
    questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    with pytest.raises(DataError, match=r"none of 14 answers ends within 1 tokens.*max_new_tokens"):
        answer_records(teacher(questions, **{"evaluation.max_new_tokens": 1}), out)
    assert not out.exists()
    some = answer_records(teacher(questions, **{"evaluation.max_new_tokens": 14}), out)
    assert some.cut > 0
    assert some.kept == len(lines_of(out)) > 0


def test_plain_text_asks_nothing(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("\n\n".join(f"The fields at {place} grow rice." for place in PLACES * 4))
    with pytest.raises(DataError, match="none of the records asks anything"):
        answer_records(teacher(text, **{"data.held_out": 2}), tmp_path / "answers.jsonl")


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--model", "embedded"], "the same for every student"), (["--out", "a.safetensors"], "one a line")],
)
def test_options_that_mean_nothing_here_are_refused(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["teach", "embedded", "--answers", *options]) == 2
    assert said in capsys.readouterr().err
