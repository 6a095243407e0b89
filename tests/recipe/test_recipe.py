"""Recipes: TOML and YAML, overrides, and clear refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ConfigError
from edgetune.core.quantised import GRIDS
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import Recipe, describe_settings, load_recipe

COUNTS = {
    "data.records", "threads", "method.answer_tokens", "method.batch_size", "method.directions_per_step",
    "method.history", "method.local_steps", "method.micro_batch", "method.pool", "method.prefix_tokens", "method.rank",
    "method.schedule_steps", "method.warmup",
}  # fmt: skip
"""Counts whose default is the method's."""
TOML = 'seed = 3\n[method]\nname = "mezo"\nlearning_rate = 1e-4\n[federation]\ndevices = 7\n'
YAML = "seed: 3\nmethod: {name: mezo, learning_rate: 1.0e-4}\nfederation: {devices: 7}\n"


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TOML)
    (tmp_path / "a.yaml").write_text(YAML)
    recipe = load_recipe(tmp_path / "a.toml")
    assert recipe == load_recipe(tmp_path / "a.yaml")
    assert (recipe.seed, recipe.method.name, recipe.method.learning_rate) == (3, "mezo", 1e-4)
    assert (recipe.federation.devices, recipe.federation.rounds) == (7, 20)


def test_overrides_win_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TOML)
    recipe = load_recipe(
        tmp_path / "a.toml",
        ["seed=4", "method.name=fedkseed", "method.learning_rate=2e-5", "method.learning_rate=3e-5"],
        federation__devices=9,
        model__source=None,
    )
    assert (recipe.seed, recipe.method.name, recipe.method.learning_rate) == (4, "fedkseed", 3e-5)
    assert (recipe.federation.devices, recipe.model.source) == (9, "embedded")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("federation.round=3", "federation.round: no such setting.*did you mean 'rounds'"),
        ("methd.name=x", "did you mean 'method'"),
        ("federation.rounds=0", "federation.rounds: .*greater than or equal to 1"),
        ("federation.participation=1.5", "federation.participation"),
        ("federation.participation=nan", "federation.participation"),
        ("seed=-1", "seed"),
        ("seed=4294967296", "seed"),
        ("model.dtype=float8", "model.dtype"),
        ("split.alpha=0", "split.alpha"),
        (
            "compression.grid=Q4_K_M",
            r"compression.grid: must be one of Q2_K, .*'Q4_K_M' \(did you mean 'Q4_K'",
        ),
        ("compression.grid=8", "compression.grid: must be one of"),
        ("method.pool=many", "method.pool"),
        ("seed.x=1", "seed"),
        ("seed", "section.key=value"),
    ],
)
def test_wrong_settings_are_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(None, ["seed=1", override])


@pytest.mark.parametrize("spell", [str.lower, str.upper])
def test_every_grid_is_known_by_its_name(spell: Callable[[str], str]) -> None:
    for name in GRIDS:
        assert load_recipe(None, [f"compression.grid={spell(name)}"]).compression.grid == name


@pytest.mark.parametrize("override", ["federation.round=3", "fedaration.rounds=3", "federation.rounds=0"])
def test_a_file_is_not_blamed_for_what_the_command_line_says(override: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(TOML)
    with pytest.raises(ConfigError) as refused:
        load_recipe(path, [override])
    assert path.name not in str(refused.value)
    key, _, value = override.partition("=")
    section, _, name = key.partition(".")
    path.write_text(f"[{section}]\n{name} = {value}\n")
    with pytest.raises(ConfigError) as refused:
        load_recipe(path, [])
    assert path.name in str(refused.value)


def test_a_negative_learning_rate_is_refused() -> None:
    recipe = load_recipe(None, ["method.learning_rate=-1"])
    options = recipe.method.model_dump(exclude={"name"}, exclude_none=True)
    with pytest.raises(ConfigError, match="learning rate"):
        with_options(tuning_method(recipe.method.name), options)


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.toml", "seed = "), ("a.yaml", "seed: [1"), ("a.yaml", "- 1"), ("a.yaml", ""), ("none/a.toml", None)],
)
def test_files_that_are_no_recipes_are_refused(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"a\.(toml|yaml)"):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", f"seed = {'9' * 5000}", "4300 digits"),
        ("a.toml", f"a = {'[' * 900}{']' * 900}", "nested too deeply"),
        ("a.yaml", "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("a.yaml", "seed: 2020-99-99", "not valid"),
        ("a.yaml", "seed: 2020-01-01", "seed"),
        ("a.yaml", "seed: !!python/object/apply:os.getcwd []", "not valid"),
        ("a.yaml", "a: &a [1]\nb: *a", "aliases"),
        ("a.yaml", "a: &a {<<: *a}", "aliases"),
        ("a.yaml", "1: 2", "keys should be strings"),
        ("a.yaml", "{[1]: 2}", "not valid"),
        ("a.yaml", "seed: [" + "l, " * 50_000 + "l]", "seed"),
        ("a.toml", "#" * 1_000_001, "at most 1,000,000 bytes"),
        ("a.toml", "\0", "not valid"),
        ("a.yaml", "\0", "not valid"),
    ],
)
def test_hostile_files_end_in_one_short_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=said) as found:
        load_recipe(tmp_path / name)
    assert len(str(found.value)) < 1000


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.toml")
    for path in (tmp_path / "a.toml", tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="not a file"):
            load_recipe(path)


ABSURD = 10**18


@pytest.mark.parametrize(
    "key",
    [
        key
        for key, (default, _) in describe_settings().items()
        if (isinstance(default, int) and not isinstance(default, bool)) or key in COUNTS
    ],
)
def test_numbers_beyond_any_use_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load_recipe(None, [f"{key}={ABSURD}"])


def test_a_value_of_too_many_digits_is_one_line() -> None:
    with pytest.raises(ConfigError, match="seed") as found:
        load_recipe(None, ["seed=" + "9" * 5000])
    assert len(str(found.value)) < 500


def test_a_round_of_too_many_directions_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 4,194,304 directions"):
        with_options(tuning_method("mezo"), {"local_steps": 10**6, "directions_per_step": 5})


def test_the_fingerprint_changes_with_what_decides_the_weights_and_nothing_else() -> None:
    def fingerprint(*overrides: str) -> str:
        return load_recipe(None, overrides).tuning_fingerprint

    same = ["federation.rounds=3", "threads=1", "compression.name=rtn", "evaluation.samples=0"]
    assert {fingerprint(one) for one in same} == {fingerprint()}
    other = ["seed=1", "method.eps=1", "data.held_out=3", "split.alpha=1", "federation.devices=3"]
    other += ["evaluation.max_new_tokens=3", "model.dtype=float16", "federation.participation=1"]
    assert len({fingerprint(), *map(fingerprint, other)}) == len(other) + 1


def test_every_setting_is_described() -> None:
    settings = describe_settings()
    assert settings["federation.rounds"][0] == 20
    assert all(text for _, text in settings.values())


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    rows = [
        {"instruction": f"say {i}", "context": "", "response": f"the {i}", "category": "ab"[i % 2]}
        for i in range(60)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(folder: Path, data_file: Path, **more: Any) -> Recipe:
    sizes = {
        "data__held_out": 10,
        "data__calibration": 5,
        "federation__devices": 4,
        "evaluation__max_new_tokens": 8,
    }
    return load_recipe(None, model__source=str(folder), data__source=str(data_file), **(sizes | more))


def test_prepare_spreads_every_record_once_and_keeps_samples_apart(save_tiny: Any, data_file: Path) -> None:
    folder = save_tiny()
    prepared = prepare(recipe_of(folder, data_file))
    assert (len(prepared.held_out), len(prepared.calibration)) == (10, 5)
    assert sum(map(len, prepared.devices.values())) == 45
    assert len(prepared.devices) == 4
    held, own = (
        {record.instruction for record in part} for part in (prepared.held_out, prepared.calibration)
    )
    assert not held & own
    assert all(len(one.input_ids) <= 120 for share in prepared.devices.values() for one in share)
    again = prepare(recipe_of(folder, data_file))
    assert again.devices == prepared.devices
    assert again.held_out == prepared.held_out


def test_a_held_out_category_reaches_no_device(save_tiny: Any, data_file: Path) -> None:
    prepared = prepare(recipe_of(save_tiny(), data_file, data__held_out_category="b"))
    assert {record.category for record in prepared.held_out} == {"b"}
    assert {record.category for record in prepared.calibration} == {"a"}
    assert sum(map(len, prepared.devices.values())) == 25


def test_answers_longer_than_the_model_are_refused(save_tiny: Any, data_file: Path) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens"):
        prepare(recipe_of(save_tiny(), data_file, evaluation__max_new_tokens=125))
