"""Learning-rate schedules equal those of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import optimization

from edgetune.core.errors import ConfigError
from edgetune.updates import Constant, Cosine, Linear


def rates(make: Any, **options: int) -> list[float]:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    return [float(make(optimiser, **options).lr_lambdas[0](step)) for step in range(30)]


@pytest.mark.parametrize("warmup", [0, 1, 7])
def test_schedules_equal_those_of_transformers(warmup: int) -> None:
    ends = {"num_warmup_steps": warmup, "num_training_steps": 24}
    for made, expected in (
        (Constant(warmup), rates(optimization.get_constant_schedule_with_warmup, num_warmup_steps=warmup)),
        (Linear(24, warmup), rates(optimization.get_linear_schedule_with_warmup, **ends)),
        (Cosine(24, warmup), rates(optimization.get_cosine_schedule_with_warmup, **ends)[:25] + [0.0] * 5),
    ):
        assert [made.rate(step) for step in range(30)] == pytest.approx(expected, abs=1e-12)


def test_impossible_schedules_are_refused() -> None:
    for make in (lambda: Constant(-1), lambda: Linear(5, 5), lambda: Cosine(0), lambda: Linear(9, -1)):
        with pytest.raises(ConfigError, match="cannot warm up"):
            make()
