"""The method that a recipe asks for, and what a longer run may change."""

from __future__ import annotations

from edgetune.recipe.prepare import recipe_method
from edgetune.recipe.recipe import load_recipe
from edgetune.updates import Constant, Cosine, Linear


def fingerprint(*overrides: str) -> str:
    return load_recipe(None, overrides).tuning_fingerprint


def test_a_decay_ends_with_the_last_round() -> None:
    asked = ["method.schedule=cosine", "method.local_steps=30", "federation.rounds=4", "method.warmup=8"]
    assert recipe_method(load_recipe(None, asked)).schedule == Cosine(120, 8)
    assert recipe_method(load_recipe(None, [*asked, "method.schedule_steps=50"])).schedule == Cosine(50, 8)
    published = ["method.schedule=linear", "federation.rounds=3"]
    assert recipe_method(load_recipe(None, published)).schedule == Linear(600)
    assert recipe_method(load_recipe(None, ["method.warmup=5"])).schedule == Constant(5)


def test_rounds_decide_results_only_where_a_decay_ends_with_them() -> None:
    more = "federation.rounds=30"
    assert fingerprint() == fingerprint(more)
    linear = "method.schedule=linear"
    assert fingerprint(linear) != fingerprint(linear, more)
    fixed = "method.schedule_steps=100"
    assert fingerprint(linear, fixed) == fingerprint(linear, fixed, more)
