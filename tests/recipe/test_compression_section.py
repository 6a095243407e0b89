"""What a recipe sets of a compression method."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edgetune.compress.masking import NofM, Unstructured
from edgetune.core.errors import ConfigError
from edgetune.core.integers import INTEGERS
from edgetune.core.quantised import Q4_0, Q8_0
from edgetune.methods.compression import gptaq, joint, sparsegpt
from edgetune.recipe.preflight import compression_of
from edgetune.recipe.recipe import Recipe


def recipe(**settings: Any) -> Recipe:
    return Recipe.model_validate({"compression": settings})


@pytest.mark.parametrize("name", ["optq", "rtn", "gptaq", "sparsegpt", "wanda", "magnitude", "joint"])
def test_nothing_set_is_the_method_as_it_stands_in_its_file(name: str) -> None:
    assert compression_of(recipe(name=name)).name == name
    assert compression_of(recipe()) == gptaq.METHOD
    assert compression_of(recipe(name="joint")) == joint.METHOD


def test_a_pruner_keeps_floats_unless_a_grid_is_named() -> None:
    assert compression_of(recipe(name="sparsegpt")).grid is None
    assert compression_of(recipe(name="sparsegpt", grid="Q8_0")).grid == Q8_0
    assert compression_of(recipe(name="joint")).grid == Q4_0


@pytest.mark.parametrize(
    ("written", "meant"), [("2:4", NofM(2, 4)), ("0.7", Unstructured(0.7)), (0.7, Unstructured(0.7))]
)
def test_sparsity_is_a_share_or_a_pattern(written: str | float, meant: Unstructured | NofM) -> None:
    found = compression_of(recipe(name="sparsegpt", sparsity=written, swaps=0, polish=3, aim_dense=True))
    assert found.mask is not None
    assert sparsegpt.METHOD.mask is not None
    mask = dataclasses.replace(sparsegpt.METHOD.mask, sparsity=meant)
    assert found == dataclasses.replace(sparsegpt.METHOD, mask=mask, swaps=0, polish=3, aim_dense=True)


def test_order_and_grids_of_integers_are_settings() -> None:
    assert not compression_of(recipe()).static_order
    found = compression_of(recipe(static_order=True, grid="uint4-g64"))
    assert all(recipe(grid=name.upper()).compression.grid == name for name in INTEGERS)
    assert recipe(grid="q4_k").compression.grid == "Q4_K"
    assert (found.static_order, found.grid) == (True, INTEGERS["uint4-g64"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "optq", "sparsity": "0.5"}, "prunes nothing"),
        ({"name": "optq", "polish": 4}, "mask"),
        ({"name": "wanda", "aim_dense": True}, "compensate"),
        ({"name": "rtn", "static_order": True}, "order of columns"),
        ({"name": "sparsegpt", "sparsity": "3:5"}, "2:4"),
        ({"name": "sparsegpt", "sparsity": 1.5}, "0 to 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        compression_of(recipe(**settings))
