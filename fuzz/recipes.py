"""Recipes: every key with values of every kind, as TOML and YAML, and text that is neither."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from edgetune.recipe.prepare import recipe_method
from edgetune.recipe.recipe import describe_settings, load_recipe
from fuzz.target import INTEGERS, any_value, as_json, deep, mutated_bytes, refusal, require

KEYS = list(describe_settings())
GOOD: dict[str, tuple[Any, ...]] = {
    "method.name": ("mezo", "fedkseed", "lora", "zo_sgd", "mezo_lora", "mezo_prefix", "mezzo"),
    "method.optimiser": ("sgd", "momentum", "adam", "adamw"),
    "method.directions": ("hadamard", "rademacher", "gaussian"),
    "method.estimate": ("two_point", "one_sided"),
    "method.schedule": ("constant", "linear", "cosine"),
    "method.objective": ("loss", "token_f1", "accuracy"),
    "method.layer_scale": ("parameter_norm", {"q": 1e-320}, {"mlp": 2.0}, {"": 0.5}),
    "split.kind": ("dirichlet", "iid", "quantity"),
    "model.residency": ("fused", "streamed", "streamed-q4_0"),
}


class Recipes:
    """Files and overrides of a run."""

    name = "recipes"

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()

    def case(self, rng: Random) -> bytes:
        """Return a first byte that says the suffix, and the text."""
        chosen: dict[str, dict[str, Any] | Any] = {}
        for key in rng.sample(KEYS, rng.choice((0, 1, 1, 2, 5, 12))):
            section, _, name = key.rpartition(".")
            value = rng.choice(GOOD[key]) if key in GOOD and rng.random() < 0.8 else _value(rng)
            if section:
                chosen.setdefault(section, {})[name] = value
            else:
                chosen[key] = value
        if rng.random() < 0.1:
            chosen[rng.choice(("methd", "é", "model", "seed"))] = any_value(rng)
        suffix = rng.randrange(2)
        text = as_json(chosen) if suffix else _toml(chosen)  # JSON is YAML
        if rng.random() < 0.1:
            text = deep(rng) if suffix else f"a = {deep(rng)}"
        data = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.3:
            data = mutated_bytes(data, rng)
        return bytes([suffix]) + data

    def check(self, case: bytes) -> str:
        """Read the file as a recipe, and make its method."""
        path = Path(self._folder.name) / ("a.yaml" if case[:1] == b"\1" else "a.toml")
        path.write_bytes(case[1:])
        recipe = refusal(lambda: load_recipe(path))
        if isinstance(recipe, str):
            return recipe
        require(len(recipe.tuning_fingerprint) == 64, "no fingerprint")
        method = refusal(lambda: recipe_method(recipe))
        if isinstance(method, str):
            return method
        require(math.isfinite(method.rate(1, 0)) and len(method.digest) == 64, "a method that cannot step")
        return "accepted"


def _value(rng: Random) -> Any:
    return rng.choice(
        (rng.choice(INTEGERS), rng.choice((1e-4, 0.5, 2.0, -1.0)), any_value(rng), rng.randrange(50))
    )


def _toml(value: dict[str, Any]) -> str:
    plain = [f"{_name(key)} = {_inline(one)}" for key, one in value.items() if not isinstance(one, dict)]
    tables = [
        f"[{_name(key)}]\n" + "\n".join(f"{_name(name)} = {_inline(item)}" for name, item in one.items())
        for key, one in value.items()
        if isinstance(one, dict)
    ]
    return "\n".join([*plain, *tables]) + "\n"


def _name(key: str) -> str:
    return key if key.isidentifier() and key.isascii() else as_json(key)


def _inline(value: Any) -> str:
    if isinstance(value, float):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan" if math.isnan(value) else repr(value))
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_json(str(key))} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return as_json(value if value is not None else "")
