"""The stages of a run: a list that a recipe orders, checked before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.cli.app import execute
from edgetune.core.errors import ConfigError
from edgetune.core.event_log import read_events
from edgetune.recipe.recipe import load_recipe
from edgetune.run import pipeline
from edgetune.run.stage import check_order
from edgetune.run.stages import stage_named, stage_names

SMALL = [
    "data.held_out=8", "data.calibration=8", "method.local_steps=4", "evaluation.max_new_tokens=8",
    "federation.rounds=1",
]  # fmt: skip


def rows(folder: Path) -> list[str]:
    return [one["name"] for one in read_events(folder / "events.jsonl") if one["event"] == "stage"]


def test_every_stage_has_the_name_of_its_file_and_says_what_it_costs() -> None:
    assert set(pipeline.STAGES) <= set(stage_names())
    for name in stage_names():
        stage = stage_named(name)
        assert stage.name == name
        assert stage.summary.endswith(".")
        assert stage.cost


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no stages"),
        (["base", "tune", "tune"], "twice"),
        (["measure"], "needs a file"),
        (["compress", "tune"], "gives a file"),
        (["base", "measure"], "gives a model"),
        (["base", "tune", "round"], "'round' is for 'compress'"),
        (["tune", "round", "export", "measure"], "'round' is for 'compress'"),
    ],
)
def test_an_order_that_cannot_be_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_order([stage_named(name) for name in names])


def test_an_unknown_stage_is_refused_with_the_nearest_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert execute(["run", "--out", str(out), "--set", "stages=['base', 'compres']"]) == 2
    assert "'compress'" in capsys.readouterr().err
    assert not out.exists()


def test_a_recipe_leaves_stages_out(tmp_path: Path) -> None:
    recipe = load_recipe(None, [*SMALL, "stages=['tune', 'export', 'measure']"])
    pipeline.run(recipe, tmp_path, command="x", listener=lambda event: None)
    assert rows(tmp_path) == ["tuned", "llama.cpp"]


def test_a_base_is_compressed_without_tuning(tmp_path: Path) -> None:
    recipe = load_recipe(None, [*SMALL, "stages=['compress', 'measure']"])
    pipeline.run(recipe, tmp_path, command="x", listener=lambda event: None)
    assert rows(tmp_path) == ["compressed", "llama.cpp"]
    assert not (tmp_path / "tuned.ledger").exists()


def test_later_stages_are_no_part_of_what_decides_the_tuned_weights_and_earlier_ones_are() -> None:
    usual = load_recipe(None).tuning_fingerprint
    assert load_recipe(None, ["stages=['base', 'tune', 'export']"]).tuning_fingerprint == usual
    assert load_recipe(None, ["stages=['prune', 'tune']"]).tuning_fingerprint != usual
