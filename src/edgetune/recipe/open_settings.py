"""Which settings of a method a recipe leaves open, and the numbers that ship with the embedded model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.models.embedded import EMBEDDED
from edgetune.recipe.method_section import AUTO
from edgetune.recipe.recipe import Recipe, load_recipe

OPEN = ("learning_rate", "eps")
"""Settings that a recipe may leave to a range test."""


def packaged_recipe(name: str = "demo") -> Path | None:
    """Return a packaged recipe by its name, or None.

    They are `smollm2`, and for the embedded model `demo`, `cross_silo`, `cross_device` and one of a method's name.
    """
    path = Path(__file__).parent.parent / "recipes" / f"{name}.toml"
    return path if path.is_file() else None


def recipe_method(recipe: Recipe) -> TuningMethod:
    """Return the tuning method with the recipe's options; a decay ends with the last round if nothing else is said.

    Settings that are left open stand at their published values until `suggest.settling` finds them.

    Raises:
        ConfigError: if there is no such method, or an option does not fit it.
    """
    named = tuning_method(recipe.method.name)
    options = recipe.method.model_dump(exclude={"name"}, exclude_none=True)
    shipped = _shipped_for(recipe)
    for name in OPEN:
        if options[name] == AUTO:
            del options[name]
            options |= {name: shipped[name]} if name in shipped else {}
    if options.get("schedule", "constant") != "constant":
        steps = recipe.federation.rounds * options.get("local_steps", named.local_steps)
        options.setdefault("schedule_steps", steps)
    return with_options(named, options)


def written_out(recipe: Recipe) -> Recipe:
    """Return a recipe with the numbers that its base's name stands for: it is the same where the base has another."""
    shipped = _shipped_for(recipe)
    found = {name: shipped[name] for name in OPEN if getattr(recipe.method, name) == AUTO and name in shipped}
    return recipe.model_copy(update={"method": recipe.method.model_copy(update=found)})


def left_open(recipe: Recipe, method: TuningMethod) -> tuple[str, ...]:
    """Return the settings that are to be found before a run: those the recipe calls `auto` and the method has.

    Args:
        recipe: of the run.
        method: its `recipe_method`.
    """
    shipped = _shipped_for(recipe)
    has = {"learning_rate": True, "eps": method.eps is not None}
    return tuple(
        name for name in OPEN if has[name] and name not in shipped and getattr(recipe.method, name) == AUTO
    )


def settled(recipe: Recipe, found: Mapping[str, float]) -> Recipe:
    """Return the recipe with numbers for what it left open."""
    return recipe.model_copy(update={"method": recipe.method.model_copy(update=dict(found))})


def _shipped_for(recipe: Recipe) -> Mapping[str, float]:
    """Return the numbers that ship for a recipe's base: the embedded model as it is, not a pruned copy of it."""
    own = recipe.model.source == EMBEDDED and not recipe.prunes_first
    return _shipped(recipe.method.name) if own else {}


@cache
def _shipped(method: str) -> Mapping[str, float]:
    """Return what a packaged recipe says of the open settings; nothing if the method has none."""
    path = packaged_recipe(method)
    if path is None:
        return {}
    section = load_recipe(path).method
    said = {name: getattr(section, name) for name in OPEN}
    return {name: value for name, value in said.items() if value != AUTO}
