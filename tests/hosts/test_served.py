"""What a server of real devices refuses of a recipe, and what it makes of one."""

from __future__ import annotations

import pytest

from edgetune.core.errors import ConfigError
from edgetune.hosts.serve import served
from edgetune.recipe.recipe import load_recipe


@pytest.mark.parametrize(
    ("setting", "where"),
    [
        ('stages=["base"]', "stages"),
        ("fleet.failing=0.1", "fleet"),
        ("federation.buffer=2", "federation.buffer"),
        ("federation.devices=5", "federation.devices"),
        ("federation.minimum_replies=3", "federation.minimum_replies"),
    ],
)
def test_what_real_devices_cannot_be_served_with_is_refused(setting: str, where: str) -> None:
    recipe = load_recipe(None, ["federation.participation=0.5", setting])
    with pytest.raises(ConfigError) as refused:
        served(recipe, 4)
    assert refused.value.where == where


def test_the_devices_are_those_with_a_key() -> None:
    assert served(load_recipe(None, ['stages=["base", "tune"]']), 4).federation.devices == 4
