"""Local optimisers, on both kinds of update."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from edgetune.core.errors import ConfigError
from edgetune.core.update import Dense, Projected, Update
from edgetune.updates import AdamW, Sgd


class Handle:
    """Records what is applied; adds dense steps to its weights."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = {"a": torch.randn(3, 4, generator=generator), "b": torch.zeros(5)}
        self.applied: list[Update] = []

    def named_weights(self) -> Any:
        return iter(self.weights.items())

    def apply(self, update: Update) -> None:
        self.applied.append(update)
        for name, change in update.tensors.items() if isinstance(update, Dense) else ():
            self.weights[name] += change


def test_sgd_steps_against_a_slope() -> None:
    handle = Handle()
    Sgd(0.5).step(handle, Projected.of(7, 3.0), Sgd(0.5).start(handle))
    assert handle.applied[0].keys.tolist() == [7]
    assert handle.applied[0].coefficients.tolist() == [-1.5]


def test_sgd_steps_against_a_gradient() -> None:
    handle = Handle()
    before = handle.weights["a"].clone()
    gradient = {"a": torch.ones(3, 4), "b": torch.full((5,), 2.0)}
    Sgd(0.25).step(handle, Dense(gradient), {})
    assert torch.equal(handle.weights["a"], before - 0.25)
    assert torch.equal(handle.weights["b"], torch.full((5,), -0.5))


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adamw_equals_torchs_optimiser_step_by_step(decay: float) -> None:
    handle, rule = Handle(), AdamW(lr=0.01, weight_decay=decay)
    mirror = {name: torch.nn.Parameter(one.clone()) for name, one in handle.weights.items()}
    torchs = torch.optim.AdamW(mirror.values(), lr=0.01, weight_decay=decay)
    state, generator = rule.start(handle), torch.Generator().manual_seed(1)
    for step in range(1, 8):
        gradients = {name: torch.randn(one.shape, generator=generator) for name, one in mirror.items()}
        for name, weight in mirror.items():
            weight.grad = gradients[name]
        torchs.step()
        rule.step(handle, Dense(gradients), state)
        for name, weight in mirror.items():
            assert torch.allclose(handle.weights[name], weight, rtol=0, atol=1e-6)
            assert torch.equal(state[f"m.{name}"], torchs.state[weight]["exp_avg"])
            assert torch.equal(state[f"v.{name}"], torchs.state[weight]["exp_avg_sq"])
        assert float(state["t.a"]) == step


def test_a_rate_scales_the_learning_rate() -> None:
    for rule in (Sgd(0.5), AdamW(0.5)):
        whole, half = Handle(), Handle()
        gradient = Dense({"a": torch.ones(3, 4), "b": torch.ones(5)})
        rule.step(whole, gradient, rule.start(whole))
        rule.step(half, gradient, rule.start(half), rate=0.5)
        for name in ("a", "b"):
            got, expected = (one.applied[0].tensors[name] for one in (half, whole))
            assert torch.allclose(got, expected / 2, atol=1e-6)


def test_adamw_refuses_a_slope() -> None:
    with pytest.raises(ConfigError, match="dense"):
        AdamW(0.1).step(Handle(), Projected.of(1, 1.0), {})


@pytest.mark.parametrize("rate", [-1e-3, math.nan, math.inf])
def test_rates_that_are_no_rates_are_refused(rate: float) -> None:
    for make in (Sgd, AdamW, lambda bad: AdamW(0.1, weight_decay=bad)):
        with pytest.raises(ConfigError, match="learning rate"):
            make(rate)
