"""FwdLLM: defaults, targets, and derivatives that a recipe may choose."""

from __future__ import annotations

import pytest

from edgetune.aggregate import Mean, Paced
from edgetune.core.errors import ConfigError
from edgetune.directions import Gaussian
from edgetune.directions.draw import Fresh
from edgetune.estimators import Jvp, TwoPoint
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.tune import Lora

METHOD = tuning_method("fwdllm")


def test_the_published_settings() -> None:
    assert (METHOD.estimate, METHOD.directions, METHOD.batch_size) == (TwoPoint(1e-2), Fresh(Gaussian()), 8)
    assert METHOD.target == Lora(8, 16.0)
    assert METHOD.aggregate == Paced(lr=1e-2, threshold=0.0)


def test_a_recipe_may_take_forward_mode_and_set_the_pace() -> None:
    chosen = with_options(
        METHOD, {"estimate": "jvp", "variance_threshold": 0.5, "most_slopes": 64, "learning_rate": 2.0}
    )
    assert chosen.estimate == Jvp()
    assert chosen.aggregate == Paced(lr=2.0, threshold=0.5, most=64)
    assert chosen.learning_rate == 2.0


def test_devices_that_do_not_move_need_a_server_that_does() -> None:
    with pytest.raises(ConfigError, match="needs"):
        with_options(tuning_method("mezo"), {"aggregate": "paced", "variance_threshold": 1.0})
    with pytest.raises(ConfigError, match="mean"):
        with_options(METHOD, {"aggregate": "mean"})
    assert Mean().name == "mean"
