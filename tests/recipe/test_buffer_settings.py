"""What a recipe may say of an asynchronous buffer, and what is refused before anything loads."""

from __future__ import annotations

from typing import Any

import pytest

from edgetune.core.errors import ConfigError
from edgetune.federation.buffer import Buffer
from edgetune.federation.tuning import buffer_of
from edgetune.methods.catalogue import tuning_method
from edgetune.recipe.asking import check_buffer
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import Recipe, load_recipe


def recipe(*overrides: str) -> Recipe:
    return load_recipe(None, [f"federation.{one}" for one in overrides])


def test_without_a_buffer_a_recipe_is_what_it_was() -> None:
    assert buffer_of(recipe().federation) is None
    assert buffer_of(recipe("buffer=3", "staleness_power=1", "max_staleness=2").federation) == Buffer(
        3, 1.0, 2
    )
    prints = [recipe(*one).tuning_fingerprint for one in ((), ("buffer=3",), ("buffer=3", "max_staleness=2"))]
    assert len(set(prints)) == 3


@pytest.mark.parametrize("setting", ["staleness_power=1", "max_staleness=2"])
def test_settings_of_a_buffer_without_one_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting.partition("=")[0]):
        check_buffer(recipe(setting).federation, tuning_method("fedkseed"))
    check_buffer(recipe(setting, "buffer=1").federation, tuning_method("fedkseed"))


@pytest.mark.parametrize("name", ["mezo", "one_byte", "fwdllm", "dpzero", "fedkseed_pro"])
def test_a_method_that_needs_replies_of_one_state_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"federation\.buffer"):
        check_buffer(recipe("buffer=2").federation, tuning_method(name))
    check_buffer(recipe().federation, tuning_method(name))


@pytest.mark.parametrize("name", ["fedkseed", "lora", "fedavg", "fedprox", "fedpetuning", "fedit", "fedadam"])
def test_linear_methods_are_served(name: str) -> None:
    check_buffer(recipe("buffer=2").federation, tuning_method(name))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("buffer=3",), r"federation\.buffer: the server steps after 3 replies, and 2 of 20 devices"),
        (("buffer=1", "minimum_replies=2"), r"waits for 1 of 20 devices, fewer than the 2"),
    ],
)
def test_a_buffer_that_never_fills_is_refused_before_the_model_loads(
    settings: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be loaded")

    monkeypatch.setattr("edgetune.recipe.prepare.load_backbone", load)
    with pytest.raises(ConfigError, match=said):
        prepare(recipe(*settings))
