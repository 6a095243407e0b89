"""Scores that are all equal, and stay so when the model is perturbed, are refused once, before the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError
from edgetune.core.event_log import read_events

SMALL = [
    "--rounds", "1", "--set", "data.held_out=6", "--set", "data.calibration=4", "--set", "method.local_steps=2",
    "--set", "method.batch_size=2", "--set", "evaluation.max_new_tokens=2", "--set", "evaluation.samples=0", "-q",
]  # fmt: skip


@pytest.fixture
def mine(save_tiny: Callable[..., Path], tmp_path: Path) -> list[str]:
    data = tmp_path / "mine.jsonl"
    lines = [
        {"instruction": f"say {index}", "context": "", "response": f"it is {index}", "category": "c"}
        for index in range(40)
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    return ["--model", str(save_tiny("llama")), "--data", str(data), *SMALL]


@pytest.mark.parametrize("given", [[], ["--lr", "1e-3", "--set", "method.eps=1e-3"]], ids=["auto", "given"])
def test_a_random_model_that_answers_nothing_right_is_refused(
    given: list[str], mine: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["tune", "mezo", *mine, *given, "--set", "method.objective=accuracy", "--out", str(out)]
    assert execute(command) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert "method.objective=token_f1 or loss" in said
    assert said.count("\n") == 1
    assert not (out / "events.jsonl").exists()


def scores_by(rule: Callable[[str], float]) -> Any:
    def exact_match(answers: Sequence[str], references: Sequence[str]) -> list[float]:
        return [rule(answer) for answer in answers]

    return exact_match


def test_scores_that_differ_between_records_are_let_through(
    mine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter(range(10**6))
    rule = scores_by(lambda answer: float(next(seen) % 3 == 0))
    monkeypatch.setattr("edgetune.measure.objective.ScoredAnswers.records", _records(rule))
    command = ["tune", "mezo", *mine, "--set", "method.objective=accuracy", "--out", str(tmp_path / "out")]
    assert execute(command) == 0
    (rate,) = [one for one in read_events(tmp_path / "out" / "events.jsonl") if one["event"] == "rate"]
    assert rate["learning_rate"] > 0


def test_scores_that_only_a_perturbation_changes_are_let_through(
    mine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from edgetune.recipe.prepare import prepare
    from edgetune.recipe.recipe import load_recipe
    from edgetune.suggest.preparing import SCORED, refuse_equal_scores

    calls = list[int]()

    def records(self: Any, model: Any, batch: Any) -> tuple[Any, Any]:
        calls.append(len(batch.input_ids))
        moved = float(len(calls) == 3)
        return -moved * torch.ones(calls[-1]), torch.ones(calls[-1])

    monkeypatch.setattr("edgetune.measure.objective.ScoredAnswers.records", records)
    settings = [word for word in SMALL if "=" in word]
    recipe = load_recipe(
        None,
        [*settings, "method.objective=accuracy"],
        model__source=mine[1],
        data__source=mine[3],
        method__name="mezo",
    )
    refuse_equal_scores(prepare(recipe))
    assert calls == [SCORED, SCORED // 4, SCORED // 4]


def _records(score: Callable[[Sequence[str], Sequence[str]], list[float]]) -> Any:
    import torch

    def records(self: Any, model: Any, batch: Any) -> tuple[Any, Any]:
        count = len(batch.input_ids)
        return -torch.tensor(score([""] * count, [""] * count)), torch.ones(count)

    return records
