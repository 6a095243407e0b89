"""The section of pruning names what there is, and nothing else."""

from __future__ import annotations

from typing import get_args

import pytest

from edgetune.compress.structured.budget import WIDTHS
from edgetune.compress.structured.importance import RULES
from edgetune.core.errors import ConfigError
from edgetune.recipe.calibration import learnable
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import load_recipe
from edgetune.recipe.sections import PruningSection
from edgetune.run.pruning import MODULES
from edgetune.run.recoveries import RECOVERIES


@pytest.mark.parametrize(
    ("field", "known"),
    [("importance", [*RULES]), ("recover", [*RECOVERIES]), ("width", [*WIDTHS, MODULES])],
)
def test_names_are_those_that_are_registered(field: str, known: list[str]) -> None:
    assert list(get_args(PruningSection.model_fields[field].annotation)) == known


@pytest.mark.parametrize(
    "said", ["ratio=0", "ratio=1", "steps=0", "learning_rate=0", "spare=[1]", "spare=[-1, 0]"]
)
def test_values_out_of_range_are_refused(said: str) -> None:
    with pytest.raises(ConfigError, match=r"pruning\."):
        load_recipe(None, [f"pruning.{said}"])


def test_a_run_learns_from_the_servers_own_sample_and_a_command_from_all_that_is_not_held_out() -> None:
    recipe = load_recipe(None, ["data.held_out=10", "data.calibration=12", "data.records=60"])
    run, alone = prepare(recipe), prepare(recipe, split=False)
    own = {one.input_ids for one in run.calibration_examples}
    assert {one.input_ids for one in learnable(run, 10_000)} == own
    private = {one.input_ids for share in run.devices.values() for one in share}
    held = {one.input_ids for one in run.held_out_examples}
    found = {one.input_ids for one in learnable(alone, 10_000)}
    assert private | own <= found
    assert not held & found
    assert len(learnable(alone, 5)) == 5
