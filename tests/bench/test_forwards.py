"""Methods at equal forward passes: budgets, the search for rates, rows that stay, and a run that is `tune`'s."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from edgetune.bench import forwards
from edgetune.bench.forward_lines import ahead, lines_of
from edgetune.bench.forwarding import divided, recipe_of
from edgetune.bench.forwarding import row_of as made_here
from edgetune.bench.forwards import (
    BATCH,
    CHOOSE,
    CHOSEN_BY,
    FACTORS,
    MOST,
    POINTS,
    RANGE,
    ROWS,
    RUN,
    WAYS,
    Task,
    Trial,
    Way,
    best_of,
    compare,
    local_steps,
    next_factors,
    ways_of,
)
from edgetune.cli.forwards_table import page_of, tasks_here
from edgetune.core.errors import ConfigError
from edgetune.core.events import RoundFinished
from edgetune.data.encode import Example
from edgetune.federation.plan import Plan
from edgetune.federation.single import tune
from edgetune.federation.state import Checkpoint
from edgetune.federation.worker import Worker
from edgetune.recipe.prepare import prepare
from edgetune.recipe.quality import model_loss

SMALL = {"data.records": 60, "data.held_out": 8, "data.calibration": 8, "evaluation.max_new_tokens": 4}
BEST = {"mezo": 8.0, "fedkseed": 0.5, "lora": 2.0}
"""Rates of the least loss in `fake`, in units of the range test's."""


def trial(way: str, **changes: Any) -> Trial:
    (begun,) = [forwards._begun(Task(), way, WAYS[way], 8000)]
    return replace(begun, **changes)


def fake(one: Trial, out: Path) -> dict[str, Any]:
    """Return a row whose loss is least at a known rate, and says its seed."""
    row = {
        "cell": one.name,
        **{key: asdict(one)[key] for key in ("task", "way", "method", "work", "phase", "seed")},
    }
    row |= {"factor": one.factor, "cpu_seconds": 5.0}
    if one.phase == RANGE:
        return row | {"learning_rate": 1e-3, "eps": None if one.way == "lora" else 2e-3, "clear": True}
    lucky = 2.0 if one.phase == CHOOSE and one.factor == 4.0 else 0.0  # on one of the seeds alone
    loss = 1.0 + math.log2(one.factor / BEST[one.way]) ** 2 + (0.01 - lucky if one.seed % 10 == 0 else lucky)
    steps = POINTS * local_steps(one)
    return row | {
        "points": [(0, 2.0), (100, loss)], "base_loss": 2.0, "loss": loss if loss < 9 else None, "dropped": 0,
        "steps": steps, "passes": 2, "learning_rate": one.settings["method.learning_rate"],
        "eps": one.settings.get("method.eps"), "rouge_l": 50.0, "base_rouge_l": 40.0,
    }  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_method_does_the_same_forward_passes_but_for_a_step_an_interval(way: str) -> None:
    one = trial(way)
    method = forwards.variant(WAYS[way])
    done = POINTS * local_steps(one) * method.estimate.passes * BATCH
    assert 8000 - POINTS * method.estimate.passes * BATCH < done <= 8000
    recipe = recipe_of(replace(one, settings={**one.settings, "method.learning_rate": 1e-3}))
    assert (recipe.method.local_steps, recipe.federation.rounds) == (local_steps(one), POINTS)
    assert (recipe.method.batch_size, recipe.seed) == (BATCH, 0)


def test_a_backward_pass_counts_as_two() -> None:
    assert local_steps(trial("mezo")) == 100
    assert local_steps(trial("fzoo")) == 22
    assert local_steps(trial("lora")) == 66
    assert local_steps(trial("one-sided-7")) == 25
    assert local_steps(trial("fzoo", work=1)) == 1


@pytest.mark.parametrize("best", [2.0**power for power in range(-3, 6)])
def test_rates_are_tried_until_the_best_has_both_neighbours(best: float) -> None:
    losses: dict[float, float] = {}
    while wanted := next_factors(losses):
        assert not set(wanted) & set(losses)
        losses |= {factor: abs(math.log2(factor / best)) for factor in wanted}
    assert best_of(losses) == best
    assert {best / 2, best, 2 * best} <= set(losses)
    assert set(FACTORS) <= set(losses)


def test_where_all_runs_go_astray_smaller_rates_are_tried_and_not_for_ever() -> None:
    losses: dict[float, float] = {}
    while wanted := next_factors(losses):
        losses |= dict.fromkeys(wanted, math.inf)
    assert len(losses) == MOST
    assert min(losses) == 2.0 ** (len(FACTORS) - MOST)
    assert max(losses) == FACTORS[-1]


def test_of_equal_losses_the_smaller_rate_is_taken() -> None:
    assert best_of({2.0: 0.5, 1.0: 0.5, 4.0: 0.7}) == 1.0


def test_another_method_is_compared_by_its_name_and_one_that_cannot_be_is_refused() -> None:
    assert ways_of([]) == WAYS
    assert ways_of(["fzoo", "mezo_lora"]) == {"fzoo": WAYS["fzoo"], "mezo_lora": Way("mezo_lora")}
    for name, message in (
        ("dpzero", "hides records"),
        ("one_byte", "needs a server"),
        ("fzo", "did you mean"),
    ):
        with pytest.raises(ConfigError, match=message):
            ways_of([name])


def test_a_method_in_a_file_is_compared_under_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    lines = [
        "from dataclasses import replace", "from edgetune.methods.tuning.mezo import METHOD as MEZO",
        "METHOD = replace(MEZO, name='mine')",
    ]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    (way,) = ways_of([str(path)]).items()
    assert way == ("mine", Way(str(path)))
    one = forwards._begun(Task(), *way, 8000)
    assert "/" not in one.name
    assert recipe_of(one).method.name == str(path)


def test_rates_are_chosen_then_measured_on_every_seed_and_nothing_is_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Trial] = []

    def run(one: Trial, out: Path) -> dict[str, Any]:
        ran.append(one)
        return fake(one, out)

    monkeypatch.setattr(forwards, "row_of", run)
    ways = {name: WAYS[name] for name in BEST}
    compare([Task()], ways, 2, 8000, tmp_path, jobs=1, told=lambda row: None)
    assert {one.seed for one in ran if one.phase == CHOOSE} == set(CHOSEN_BY)
    for way, best in BEST.items():
        measured = [one for one in ran if one.way == way and one.phase == RUN]
        assert [(one.factor, one.seed) for one in measured] == [(best, 0), (best, 1)]
        assert {one.settings["method.learning_rate"] for one in measured} == {1e-3 * best}
        assert {one.settings.get("method.eps") for one in measured} == {None if way == "lora" else 2e-3}
    assert len({one.name for one in ran}) == len(ran)
    done = len(ran)
    compare([Task()], ways, 2, 8000, tmp_path, jobs=1, told=lambda row: None)
    assert len(ran) == done
    compare([Task()], {"lora": ways["lora"]}, 3, 8000, tmp_path, jobs=1, told=lambda row: None)
    assert [(one.phase, one.seed) for one in ran[done:]] == [(RUN, 2)]
    compare([Task()], {"lora": ways["lora"]}, 1, 4000, tmp_path, jobs=1, told=lambda row: None)
    assert len(ran) > done + 3  # other work, other rates
    assert len((tmp_path / ROWS).read_text().splitlines()) == len(ran)


def test_rows_are_known_again_where_model_and_data_lie_in_another_folder() -> None:
    names = [
        forwards._begun(Task(f"{folder}/stories", f"{folder}/dolly.jsonl"), "mezo", WAYS["mezo"], work).name
        for folder, work in (("a", 8000), ("b", 8000), ("a", 4000))
    ]
    assert names[0] == names[1] != names[2]


def test_a_rate_that_a_way_says_takes_the_place_of_the_range_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Trial] = []
    monkeypatch.setattr(forwards, "row_of", lambda one, out: ran.append(one) or fake(one, out))  # type: ignore[func-returns-value]
    way = Way("lora", {"learning_rate": 0.25, "rank": 2})
    compare([Task()], {"lora": way}, 1, 8000, tmp_path, jobs=1, told=lambda row: None)
    assert {one.phase for one in ran} == {CHOOSE, RUN}
    assert {one.settings["method.learning_rate"] for one in ran} == {0.25, 0.5, 1.0}
    assert {one.settings["method.rank"] for one in ran} == {2}


def test_of_one_rate_the_range_tests_is_measured_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Trial] = []
    monkeypatch.setattr(forwards, "row_of", lambda one, out: ran.append(one) or fake(one, out))  # type: ignore[func-returns-value]
    ways = {name: WAYS[name] for name in BEST}
    compare([Task()], ways, 2, 8000, tmp_path, jobs=1, told=lambda row: None, rates=1)
    assert {one.phase for one in ran} == {RANGE, RUN}
    measured = [one for one in ran if one.phase == RUN]
    assert [(one.way, one.seed) for one in measured] == [(way, seed) for seed in (0, 1) for way in ways]
    assert {one.settings["method.learning_rate"] for one in measured} == {1e-3}


@pytest.mark.parametrize("most", range(2, MOST + 1))
def test_no_more_rates_are_tried_than_asked_for(most: int) -> None:
    losses: dict[float, float] = {}
    while wanted := next_factors(losses, most):
        losses |= {factor: -factor for factor in wanted}
    assert list(losses) == [2.0**power for power in range(most)]


def rows() -> list[dict[str, Any]]:
    """Return the rows of three ways and two seeds; one of the first's went astray, and its newer rate counts."""
    best = {"mezo": 8.0, "fedkseed": 0.5, "lora": 2.0}
    found = []
    for way, losses in {"mezo": (0.9, None), "fedkseed": (1.0, 1.1), "lora": (0.4, 0.3)}.items():
        for seed, loss in enumerate(losses):
            one = trial(way, phase=RUN, factor=best[way], seed=seed)
            one = replace(one, settings={**one.settings, "method.learning_rate": 1e-3})
            points = [(0, 2.0), (100, loss)]
            found.append({**fake(one, Path()), "loss": loss, "points": points})
        judged = trial(way, phase=CHOOSE, factor=best[way])
        judged = replace(judged, settings={**judged.settings, "method.learning_rate": 1e-3})
        found.append({**fake(judged, Path()), "loss": 0.77})
    stale = {**found[0], "learning_rate": 5.0, "loss": 0.001, "seed": 2}
    return [stale, *found]


def test_lines_say_how_much_of_the_gap_to_back_propagation_is_closed() -> None:
    lines = {line["way"]: line for line in lines_of(rows())}
    assert list(lines) == ["lora", "mezo", "fedkseed"]
    assert lines["fedkseed"]["loss"] == pytest.approx((1.05, 0.1 / 2**0.5))
    closed = [lines[way]["closed"] for way in ("lora", "mezo", "fedkseed")]
    assert closed == pytest.approx([1.0, (1.05 - 0.9) / (1.05 - 0.35), 0.0])
    assert (lines["mezo"]["seeds"], lines["mezo"]["ended"], lines["mezo"]["development"]) == (2, 1, 0.77)
    assert ahead(lines["lora"], lines["fedkseed"]) == (pytest.approx(0.7), pytest.approx(0.1))
    assert ahead(lines["mezo"], lines["fedkseed"]) is None


def test_the_page_has_a_table_and_a_figure_a_task(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    text = page_of(rows(), tmp_path)
    assert "## embedded: 2,000 forward passes" in text
    assert (
        "| lora | 2 | 660 | 0.001 |  | 1 | 0.7700 | 0.3500 ± 0.0707 | 50.0 | 100 % | +0.7000 ± 0.1000 |"
        in text
    )
    assert "| 2, 1 astray |" in text
    assert "fedkseed" in (tmp_path / "forwards-embedded-8000.svg").read_text()


def test_the_second_task_is_left_out_with_a_reason_where_its_files_are_not(tmp_path: Path) -> None:
    alone, why = tasks_here(None)
    assert (alone, "EDGETUNE_DATA" in str(why)) == ([Task()], True)
    alone, why = tasks_here(str(tmp_path))
    assert alone == [Task()]
    assert str(tmp_path / "models/stories260K") in str(why)
    (tmp_path / "models/stories260K").mkdir(parents=True)
    (tmp_path / "dolly").mkdir()
    (tmp_path / "dolly/databricks-dolly-15k.jsonl").touch()
    both, why = tasks_here(str(tmp_path))
    assert why is None
    assert [task.name for task in both] == ["embedded", "stories260K-databricks-dolly-15k"]
    assert both[1].settings["data.held_out_category"] == "summarization"
    assert "data.held_out_category" not in Task("m", "other.jsonl").settings


def test_a_tenth_of_the_training_records_is_set_aside_and_never_trained_on() -> None:
    examples = [Example((index, 1, 2), 1) for index in range(57)]
    train, development = divided(examples)
    assert len(development) == 6
    assert sorted([*train, *development], key=lambda one: one.input_ids) == examples
    assert divided(examples) == (train, development)


@pytest.mark.parametrize("way", ["fedkseed", "fzoo", "lora"])
def test_a_run_is_that_of_tune_on_the_records_that_are_left(way: str, tmp_path: Path) -> None:
    settings = {**trial(way).settings, **SMALL, "method.learning_rate": 1e-3}
    one = trial(way, settings=settings, work=1, phase=RUN, seed=3)
    row = json.loads(json.dumps(made_here(one)))
    prepared = prepare(recipe_of(one))
    train, _ = divided([one for share in prepared.devices.values() for one in share])
    worker = Worker(prepared.backbone, prepared.method, 3)
    events: list[Any] = []
    tune(
        worker, train, Plan(POINTS, 1.0, 3), Checkpoint(tmp_path / "ledger", worker, "f"),
        lambda tuned: model_loss(tuned.model, prepared.held_out_examples, prepared),
        pad_id=prepared.pad_id, listener=events.append,
    )  # fmt: skip
    losses = [event.loss for event in events if isinstance(event, RoundFinished)]
    passes = prepared.method.estimate.passes
    assert [forwards for forwards, _ in row["points"]] == [passes * step for step in range(POINTS + 1)]
    assert [loss for _, loss in row["points"][1:]] == losses
    assert row["loss"] == losses[-1] != row["base_loss"]
    assert row["rouge_l"] is not None
    chosen = made_here(replace(one, phase=CHOOSE))
    assert len(chosen["points"]) == 2
    assert chosen["loss"] not in (row["loss"], chosen["base_loss"])
