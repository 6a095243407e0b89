"""What methods say of themselves, with and without importing them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from edgetune.core.errors import ConfigError
from edgetune.methods import cards as module
from edgetune.methods.cards import Card, cards
from edgetune.methods.catalogue import compression_method, compression_names, tuning_method, tuning_names
from edgetune.methods.options import OPTIONS, defaults, with_options

VARIANTS = [
    ("mezo", {"optimiser": "momentum", "momentum": 0.8, "history": 7}),
    ("fedkseed", {"optimiser": "adam", "pool": 64, "directions": "rademacher"}),
    ("mezo", {"estimate": "one_sided", "directions_per_step": 3, "directions": "gaussian"}),
    ("mezo", {"schedule": "cosine", "schedule_steps": 500, "warmup": 10}),
    ("mezo", {"objective": "token_f1", "answer_tokens": 5, "eps": 0.1}),
    ("mezo", {"layer_scale": "parameter_norm"}),
    ("mezo", {"layer_scale": {"embed": 2.0}}),
    ("mezo_prefix", {"prefix_tokens": 3, "by_examples": False}),
    ("lora", {"rank": 4, "alpha": 2.0, "optimiser": "sgd", "micro_batch": 2}),
]


def test_cards_are_what_the_methods_themselves_say() -> None:
    imported = [tuning_method(name) for name in tuning_names()]
    rules = [compression_method(name) for name in compression_names()]
    found = cards()
    assert [card.name for card in found] == [*tuning_names(), *compression_names()]
    assert found[: len(imported)] == [
        Card(one.name, "tuning", one.summary, one.travels, one.memory, one.source) for one in imported
    ]
    assert [(one.name, one.summary, one.source) for one in found[len(imported) :]] == [
        (one.name, one.summary, one.source) for one in rules
    ]
    blocks = "one decoder block's Hessians beside the model"
    assert [one.memory == blocks for one in found[len(imported) :]] == [one.compensate for one in rules]


def test_words_that_are_not_constants_are_taken_from_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = cards()
    constants = module._constants
    monkeypatch.setattr(module, "_constants", lambda kind, name: {**constants(kind, name), "summary": None})
    assert cards() == expected


def test_a_list_of_methods_imports_nothing_heavy() -> None:
    script = (
        "import sys; from edgetune.cli.app import execute; code = execute(['methods']); "
        "heavy = {'torch', 'transformers', 'numpy', 'jinja2', 'matplotlib'} & set(sys.modules); "
        "sys.exit(code or (str(heavy) if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "fedkseed (tuning): " in done.stdout


@pytest.mark.parametrize("name", tuning_names())
def test_a_method_with_its_own_defaults_is_itself(name: str) -> None:
    method = tuning_method(name)
    assert with_options(method, defaults(method)) == method


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_the_settings_of_a_variant_make_it_from_the_method(name: str, options: dict[str, object]) -> None:
    variant = with_options(tuning_method(name), options)
    found = defaults(variant)
    assert options.items() <= found.items()
    assert set(found) <= set(OPTIONS)
    assert with_options(tuning_method(name), found) == variant


@pytest.mark.parametrize("name", tuning_names())
def test_an_option_is_absent_where_a_method_has_no_such_part(name: str) -> None:
    method = tuning_method(name)
    absent = set(OPTIONS) - set(defaults(method))
    values: dict[str, object] = {"optimiser": "sgd", "objective": "loss", "layer_scale": "parameter_norm"}
    for option in absent - {"layer_scale"}:
        with pytest.raises(ConfigError):
            with_options(method, {option: values.get(option, 1)})


def test_a_part_of_somebody_else_is_named_by_its_class() -> None:
    class Slow(type(tuning_method("mezo").local)):  # type: ignore[misc]
        pass

    assert defaults(replace(tuning_method("mezo"), local=Slow(1e-3)))["optimiser"] == "Slow"
