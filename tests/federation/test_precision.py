"""Half-precision runs: they train, useless settings are refused before they start, and the log says what was seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from federations import METHODS, MakeToy

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError
from edgetune.core.events import RoundFinished
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.federation.precision import UpdateWatch, check_precision
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.models.backbone import load_backbone
from edgetune.recipe.recipe import load_recipe
from edgetune.tune import ProjectedTuned

HALF = [torch.float16, torch.bfloat16]
MEZO = with_options(
    tuning_method("mezo"), {"learning_rate": 5e-4, "eps": 2e-3, "local_steps": 60, "batch_size": 4}
)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_half_precision_model_trains_and_the_round_says_what_its_weights_show(
    dtype: torch.dtype, toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "mezo", MEZO)
    run = toy("mezo", options={"dtype": dtype})
    run.tune(3)
    rounds = [event for event in run.events if isinstance(event, RoundFinished)]
    losses = [event.loss for event in rounds]
    assert all(weight.dtype == dtype for _, weight in run.worker.tuned.named_weights())
    assert losses[-1] < losses[0] - 0.3, losses  # type: ignore[operator]
    assert all(event.realised == pytest.approx(1, abs=0.05) for event in rounds)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
def test_a_learning_rate_of_zero_leaves_every_bit(
    dtype: torch.dtype, toy: MakeToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "mezo", with_options(MEZO, {"learning_rate": 0.0, "local_steps": 3}))
    run = toy("mezo", options={"dtype": dtype})
    before = {name: weight.clone() for name, weight in run.worker.tuned.named_weights()}
    run.federate(2)
    for name, weight in run.worker.tuned.named_weights():
        assert torch.equal(weight.view(torch.uint8), before[name].view(torch.uint8)), name


def test_small_steps_are_seen_to_be_hidden(tiny_model: Any) -> None:
    tuned = ProjectedTuned(tiny_model().bfloat16(), BoundSpace(Rademacher(), pool_key(0)))
    watch, state = UpdateWatch(tuned, MEZO, 0), Projected.of(3, 1e-6)
    tuned.reset(state)
    assert watch.ratio(state) < 0.1  # type: ignore[operator]
    large = Projected.of(3, 1e-2)
    tuned.reset(large)
    assert watch.ratio(large) == pytest.approx(1, abs=0.05)


def test_a_wider_stored_base_dithers_the_rounding(toy: MakeToy) -> None:
    run = toy("fedkseed", options={"dtype": torch.bfloat16})
    state = Projected.of(3, 1e-6)
    run.worker.tuned.reset(state)
    assert run.worker.watch.ratio(state) == pytest.approx(1, abs=0.3)


def test_float32_and_dense_runs_are_not_watched(toy: MakeToy) -> None:
    run = toy("fedkseed")
    assert run.worker.watch.ratio(Projected.of(3, 1e-6)) is None
    lora = toy("lora", run="b")
    assert lora.worker.watch.ratio(lora.worker.tuned.state()) is None


def test_a_radius_that_rounding_swallows_is_refused_with_one_that_works(save_tiny: Any) -> None:
    backbone = load_backbone(save_tiny(), dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"only 0 % .* float16.*--set model.dtype=float32") as refusal:
        check_precision(backbone, with_options(MEZO, {"eps": 1e-8}), 0)
    advised = float(str(refusal.value).split("method.eps=")[1].split(",")[0])
    assert check_precision(backbone, with_options(MEZO, {"eps": advised}), 0).perturbation > 0.5  # type: ignore[union-attr]
    assert check_precision(backbone, with_options(MEZO, {"eps": 1e-8}), 0, accept=True).perturbation == 0  # type: ignore[union-attr]
    assert check_precision(backbone, tuning_method("lora"), 0) is None


def test_the_refusal_is_one_line_and_leaves_no_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["tune", "mezo", "--out", str(out), "--quiet", "--set", "model.dtype=float16"]
    assert execute([*command, "--set", "method.eps=1e-8"]) == ConfigError.exit_code
    error = capsys.readouterr().err
    assert error.startswith("error: method.eps: only 0 %")
    assert error.count("\n") == 1
    assert not out.exists()


def test_the_summary_of_a_half_precision_run_has_both_ratios(tmp_path: Path) -> None:
    command = ["tune", "mezo", "--out", str(tmp_path), "--quiet", "--rounds", "1"]
    short = ["method.local_steps=4", "data.held_out=8", "data.records=100", "evaluation.max_new_tokens=2"]
    more = [word for text in [*short, "model.dtype=bfloat16"] for word in ("--set", text)]
    assert execute([*command, *more]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["precision"]["dtype"] == "bfloat16"
    assert summary["precision"]["perturbation"] == pytest.approx(1, abs=0.05)
    assert summary["precision"]["update"] == summary["rounds"][0]["realised"]
    assert 0 < summary["precision"]["update"] < 2


def test_going_on_all_the_same_does_not_make_another_run() -> None:
    plain, accepting = load_recipe(None), load_recipe(None, ["model.accept_rounding=true"])
    assert plain.tuning_fingerprint == accepting.tuning_fingerprint
    assert plain.tuning_fingerprint != load_recipe(None, ["model.dtype=auto"]).tuning_fingerprint


def test_auto_keeps_the_stored_type(tmp_path: Path) -> None:
    from edgetune.recipe.prepare import prepare

    prepared = prepare(load_recipe(None, ["model.dtype=auto", "data.records=100", "data.held_out=4"]))
    assert prepared.backbone.dtype == torch.float16
