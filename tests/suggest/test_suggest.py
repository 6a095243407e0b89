"""The range test: on a quadratic with a known answer, on objectives that have none, and on the embedded model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgetune.cli.app import execute
from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError, DivergenceError
from edgetune.core.keys import pool_key
from edgetune.directions import Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.estimators import OneSided
from edgetune.measure.realised import realised_perturbation, sample_weights
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import load_recipe
from edgetune.suggest.probe import Problem, Radius, choose_radius, measure_radius, measure_reach, scan_radii
from edgetune.suggest.range_test import DIRECTIONS, STEPS, Suggestion, suggest
from edgetune.suggest.suggesting import suggest_prepared
from edgetune.tune import ProjectedTuned

SIZE, CURVATURE = 2000, 0.01
MEZO = tuning_method("mezo")
Loss = Callable[[nn.Module, Batch], torch.Tensor]


class Point(nn.Module):
    """One vector; its forward returns it, so that perturbations are seen."""

    def __init__(self) -> None:
        super().__init__()
        start = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
        self.at = nn.Parameter(start, requires_grad=False)

    def forward(self) -> torch.Tensor:
        return self.at


def quadratic(model: nn.Module, batch: Batch) -> torch.Tensor:
    at: torch.Tensor = model()
    return CURVATURE / 2 * (at.double() ** 2).sum()


def problem_of(loss: Loss) -> Problem:
    space = BoundSpace(Rademacher(), pool_key(0))
    tuned = ProjectedTuned(Point(), space)
    sample, nothing = sample_weights(tuned.named_weights()), torch.zeros(1, 1, dtype=torch.int64)
    return Problem(
        tuned=tuned,
        objective=loss,
        batch=lambda index: Batch(nothing, nothing, nothing),
        keys=range(DIRECTIONS),
        realised=lambda eps: realised_perturbation(space, sample, eps, 0),
    )


def suggested(loss: Loss, steps: int = STEPS) -> Suggestion:
    problem = problem_of(loss)
    return suggest(problem, MEZO, range(100, 100 + STEPS), [problem.batch(0)], steps=steps)


def test_on_a_quadratic_the_rate_is_one_over_the_trace() -> None:
    found = suggested(quadratic)
    best = 1 / (SIZE * CURVATURE)
    assert found.slopes.rate == pytest.approx(best, rel=0.05)
    assert found.slopes.curvature == pytest.approx(SIZE * CURVATURE, rel=0.01)
    assert found.slopes.shared == pytest.approx(1, abs=1e-6)
    assert best / 4 <= found.learning_rate <= 4 * best
    assert found.clear


@pytest.mark.parametrize("many", [2, 8])
def test_on_a_quadratic_the_rate_of_several_directions_is_near_as_many_times_that_of_one(many: int) -> None:
    method = with_options(MEZO, {"directions_per_step": many})
    problem = problem_of(quadratic)
    keys = range(100, 100 + STEPS * many)
    found = suggest(problem, method, keys, [problem.batch(0)], steps=STEPS)
    # The mean of n slopes times signs has (d + n - 1) / n times the gradient's squared length.
    best = min(many / (CURVATURE * (SIZE + many - 1)), found.limit)
    assert best / 4 <= found.learning_rate <= 4 * best
    one = suggested(quadratic)
    assert found.limit == pytest.approx(one.limit * many**0.5)
    assert found.learning_rate > one.learning_rate
    assert min(trial.loss for trial in found.trials) < min(trial.loss for trial in one.trials)


def test_rates_of_a_standardised_step_are_those_of_plain_slopes_times_their_size() -> None:
    """Where the loss is scaled, plain rates change by 1 / scale and slopes by scale: standardised rates stay."""
    found = {}
    for scale in (1.0, 64.0):
        problem = problem_of(lambda model, batch, scale=scale: scale * quadratic(model, batch))  # type: ignore[misc]
        for name in ("one_sided", "standardised"):
            method = with_options(MEZO, {"directions_per_step": 8, "estimate": name})
            found[name, scale] = suggest(
                problem, method, range(100, 100 + 8 * STEPS), [problem.batch(0)], steps=STEPS
            )
    size = {scale: found["one_sided", scale].slopes.variance ** 0.5 for scale in (1.0, 64.0)}
    for scale, many in size.items():
        ours, plain = found["standardised", scale], found["one_sided", scale]
        assert ours.limit == pytest.approx(plain.limit * many, rel=0.1)
        assert ours.single == pytest.approx(plain.single * many, rel=0.1)
        assert ours.trials[0].loss < ours.start_loss
    assert size[64.0] == pytest.approx(64 * size[1.0], rel=0.01)
    assert found["standardised", 64.0].single == pytest.approx(found["standardised", 1.0].single, rel=0.05)
    assert found["one_sided", 64.0].single == pytest.approx(found["one_sided", 1.0].single / 64, rel=0.05)


def test_a_trial_takes_the_methods_own_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    method = with_options(MEZO, {"directions_per_step": 3, "estimate": "one_sided"})
    problem, taken = problem_of(quadratic), list[tuple[int, ...]]()
    estimate = OneSided.__call__

    def watched(self: OneSided, tuned: Any, objective: Any, batch: Batch, *keys: int) -> Any:
        taken.append(keys)
        return estimate(self, tuned, objective, batch, *keys)

    monkeypatch.setattr(OneSided, "__call__", watched)
    suggest(problem, method, range(100, 100 + 3 * STEPS), [problem.batch(0)], steps=STEPS)
    assert taken[:STEPS] == [(key, key + 1, key + 2) for key in range(100, 100 + 3 * STEPS, 3)]


def test_where_one_direction_holds_the_curvature_rates_go_down_to_that_of_one_direction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loss along one line: all slopes share its curvature, so n directions allow no higher rate than one."""
    monkeypatch.setattr("edgetune.suggest.range_test.HORIZON", 1)

    def ridge(model: nn.Module, batch: Batch) -> torch.Tensor:
        return 0.5 * (model().double().sum() / SIZE**0.5 - 40.0) ** 2

    many, problem = 8, problem_of(ridge)
    method = with_options(MEZO, {"directions_per_step": many})
    found = suggest(problem, method, range(100, 100 + STEPS * many), [problem.batch(0)], steps=1)
    top = max(trial.learning_rate for trial in found.trials)
    assert found.learning_rate <= top / 2
    assert min(trial.learning_rate for trial in found.trials) < top / 4


@pytest.mark.parametrize(
    "option", ["method.optimiser=momentum", "method.optimiser=adam", "method.objective=token_f1"]
)
def test_what_the_test_is_not_derived_for_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["suggest", "mezo", "--set", option]) == ConfigError.exit_code
    assert "plain sgd" in capsys.readouterr().err


def test_the_reach_of_a_quadratic_is_where_it_has_risen_by_a_tenth() -> None:
    # Rademacher: every direction raises the loss by h d r^2 / 2, and L0 = h |w|^2 / 2.
    problem = problem_of(quadratic)
    weights = dict(problem.tuned.named_weights())["at"]
    assert measure_reach(problem, 1e-2, 8) == pytest.approx(
        float((0.1 * (weights**2).mean()) ** 0.5), rel=0.01
    )


def test_a_longer_run_gets_a_lower_limit() -> None:
    short, long = suggested(quadratic, 1000), suggested(quadratic, 100_000)
    assert suggested(quadratic, 1).limit == short.limit
    assert long.limit == pytest.approx(short.limit / 10)
    assert all(trial.learning_rate <= 1.1 * long.limit for trial in long.trials)


def test_the_same_seed_gives_the_same_suggestion_and_the_weights_are_left() -> None:
    problem = problem_of(quadratic)
    before = {name: weight.clone() for name, weight in problem.tuned.named_weights()}
    keys = range(100, 100 + STEPS)
    found = [suggest(problem, MEZO, keys, [problem.batch(0)], steps=9) for _ in range(2)]
    assert found[0] == found[1]
    assert all(torch.equal(weight, before[name]) for name, weight in problem.tuned.named_weights())


def test_noise_is_seen_that_repeating_does_not_show() -> None:
    def grainy(model: nn.Module, batch: Batch) -> torch.Tensor:
        return (quadratic(model, batch) / 1e-3).round() * 1e-3

    row = measure_radius(problem_of(grainy), 2e-2, DIRECTIONS)
    assert row.noise == pytest.approx(1e-3 / 12**0.5, rel=0.3)
    smooth = measure_radius(problem_of(quadratic), 2e-2, DIRECTIONS)
    assert smooth.noise < 1e-6


def test_the_radius_is_doubled_until_it_is_clear_and_not_beyond_the_bend() -> None:
    rows = scan_radii(problem_of(quadratic), 8)
    assert all(row.difference > 10 * row.noise for row in rows if row.usable)
    assert rows[-1].bent
    assert not any(row.bent for row in rows[:-1])
    chosen, top, clear = choose_radius(rows)
    assert chosen.usable
    assert clear
    assert rows[0].eps < chosen.eps < top


def test_radii_that_rounding_swallows_are_skipped() -> None:
    coarse = replace(problem_of(quadratic), realised=lambda eps: float(eps > 5e-3))
    assert scan_radii(coarse, 8)[0].eps > 5e-3


def test_where_nothing_is_clear_the_largest_straight_radius_is_taken_and_said_to_be_unclear() -> None:
    rows = [
        Radius(eps, 1e-3, difference, 0.2, 0.3, bent, 1.0)
        for eps, difference, bent in ((1e-4, 9e-4, False), (2e-3, 3e-3, False), (4e-3, 6e-3, True))
    ]
    assert choose_radius(rows) == (rows[1], 2e-3, False)


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (lambda model, batch: 0 * model().sum() + 3.0, "no perturbation radius"),
        (lambda model, batch: model().sum() * float("nan"), "NaN or infinite"),
        (lambda model, batch: -CURVATURE * (model() ** 4).sum() * float("inf"), "NaN or infinite"),
    ],
    ids=["flat", "nan", "infinite"],
)
def test_an_objective_without_an_answer_ends_in_a_typed_error(loss: Loss, sentence: str) -> None:
    with pytest.raises(DivergenceError, match=sentence):
        suggested(loss)


def test_steps_at_the_suggested_settings_lower_the_loss_of_the_embedded_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["federation.rounds=1", "data.held_out=64", "evaluation.max_new_tokens=4"]
    options = [word for text in short for word in ("--set", text)]
    assert execute(["suggest", "mezo", *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 2e-5 < found["learning_rate"] < 2e-3
    words = shlex.split(found["command"])
    assert words[:3] == ["edgetune", "tune", "mezo"]
    assert words[words.index("--lr") + 1] == f"{found['learning_rate']:g}"
    assert execute([*words[1:], "--quiet", "--out", str(tmp_path)]) == 0
    stages = {
        stage["name"]: stage["loss"]
        for stage in json.loads((tmp_path / "summary.json").read_text())["stages"]
    }
    assert stages["tuned"] < stages["base"]


def test_a_method_without_a_radius_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["suggest", "lora"]) == ConfigError.exit_code
    assert "no perturbation radius" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["lora"], ["edgetune tune lora", "--lr"]),
        (["fedselft"], ["edgetune federate fedselft", "--lr"]),
        (["mezo_lora"], ["--lr", "method.eps="]),
        (["mezo", "--set", "method.optimiser=momentum"], ["--lr", "method.eps="]),
        (["mezo", "--set", "method.optimiser=adam"], ["--lr", "method.eps="]),
    ],
    ids=["lora", "fedselft", "mezo_lora", "momentum", "adam"],
)
def test_the_quick_test_takes_what_the_thorough_one_does_not(
    words: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        execute(["suggest", *words, "--quick", "--set", "data.records=100", "--set", "data.held_out=8"]) == 0
    )
    command = capsys.readouterr().out
    assert all(part in command for part in expected)
    assert ("method.eps" in command) == ("method.eps=" in expected)


def test_the_table_ends_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = suggested(quadratic)
    monkeypatch.setattr("edgetune.suggest.suggesting.suggest_prepared", lambda *_: found)
    command = ["suggest", "mezo", "--set", "method.eps=1", "--set", "data.records=100", "--set", "seed=3"]
    assert execute(command) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == (
        f"edgetune tune mezo --set data.records=100 --set seed=3 --lr {found.learning_rate:g} "
        f"--set method.eps={found.eps:g}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_gets_a_radius_that_survives(dtype: str) -> None:
    recipe = load_recipe(
        None, [f"model.dtype={dtype}", "data.held_out=16", "data.records=100", "method.batch_size=4"],
        method__name="mezo",
    )  # fmt: skip
    found: Any = suggest_prepared(prepare(recipe))
    assert found.eps >= 5e-4
    assert all(row.realised >= 0.5 for row in found.radii)
