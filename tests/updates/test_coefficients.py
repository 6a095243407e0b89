"""Momentum and Adam of coefficients: torch's own optimisers on the vector of coefficients, or on the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.update import Dense, Projected
from edgetune.directions import Hadamard, Rademacher, Source
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.tune import ProjectedTuned
from edgetune.updates import Adam, Momentum

K, D, KEY = 16, 64, pool_key(2)
BATCH = Batch(*(torch.zeros(1, 1, dtype=torch.int64),) * 3)
CPU = torch.device("cpu")


class Quadratic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 2, D), requires_grad=False)
        self.curvature = torch.linspace(0.1, 2, D)

    def forward(self) -> torch.Tensor:
        return (self.curvature * (self.w - 1) ** 2).sum() / 2


def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model()


def torchs(rule: Momentum | Adam, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    if isinstance(rule, Momentum):
        return torch.optim.SGD(weights, lr=rule.lr, momentum=rule.momentum)
    return torch.optim.Adam(weights, lr=rule.lr, betas=(rule.beta1, 0.999), eps=1e-8)


@pytest.mark.parametrize("rule", [Momentum(1e-3, 0.8), Adam(1e-3), Adam(1e-3, beta1=0.5)], ids=str)
def test_a_pools_step_is_torchs_on_the_vector_of_coefficients(rule: Momentum | Adam) -> None:
    model = Quadratic()
    space = BoundSpace(Hadamard(K), KEY)
    tuned, base = ProjectedTuned(model, space), model.w.detach().clone()
    pool = torch.stack([Hadamard(K).values(Source(KEY), "w", k, 0, D, CPU) for k in range(K)])
    assert torch.equal(pool @ pool.T, D * torch.eye(K))
    a = nn.Parameter(torch.zeros(K))
    mirror, state = torchs(rule, [a]), rule.start(tuned)
    order = np.random.Generator(np.random.Philox(3))
    for _ in range(40):
        keys = [int(key) for key in order.choice(K, 2, replace=False)]
        estimate = TwoPoint(0.1, 2)(tuned, objective, BATCH, *keys)
        gradient = torch.zeros(K)
        slopes = pool @ (model.curvature * (base + a.detach() @ pool - 1))  # dL/da_k = <grad L, z_k>
        gradient[keys] = slopes[keys] / 2
        a.grad = gradient
        mirror.step()
        rule.step(tuned, estimate.update, state)
        assert torch.allclose(model.w, base + a.detach() @ pool, atol=2e-4)
    got = torch.zeros(K)
    got[torch.from_numpy(tuned.state().keys)] = torch.from_numpy(tuned.state().coefficients)
    assert torch.allclose(got, a.detach(), atol=5e-5)
    assert float(got.abs().max()) > 5e-3


@pytest.mark.parametrize("rule", [Momentum(1e-3, 0.5, 40), Adam(1e-3, 0.5, 40)], ids=str)
def test_a_step_of_fresh_signs_is_torchs_on_the_weights(rule: Momentum | Adam) -> None:
    model = Quadratic()
    tuned = ProjectedTuned(model, BoundSpace(Rademacher(), KEY))
    weights = nn.Parameter(model.w.detach().clone())
    mirror, state = torchs(rule, [weights]), rule.start(tuned)
    for key in range(60):
        estimate = TwoPoint(0.1)(tuned, objective, BATCH, key)
        z = Rademacher().values(Source(KEY), "w", key, 0, D, CPU)
        weights.grad = float(estimate.update.coefficients[0]) * z
        mirror.step()
        rule.step(tuned, estimate.update, state)
        assert torch.allclose(model.w, weights.detach(), atol=3e-5)
    assert len(state["keys"]) == 40
    assert float((weights.detach() - torch.linspace(-1, 2, D)).abs().max()) > 5e-3


def test_a_slope_forgotten_falls_short_by_the_documented_share() -> None:
    class Handle:
        moved = 0.0

        def apply(self, update: Projected) -> None:
            self.moved += float(update.coefficients[update.keys == 0].sum())

    rule, handle = Momentum(0.1, 0.9, 8), Handle()
    state: dict[str, Any] = rule.start(handle)
    for key in range(30):
        rule.step(handle, Projected.of(key, 2.0 if key == 0 else 1.0), state)
    assert handle.moved == pytest.approx(-0.1 * 2.0 * (1 - 0.9**8) / (1 - 0.9), rel=1e-5)
    assert state["keys"].tolist() == list(range(22, 30))


@pytest.mark.parametrize("rule", [Momentum(0.1), Adam(0.1), Adam(0.1, history=3)], ids=str)
def test_a_rate_scales_the_step_and_not_the_state(rule: Momentum | Adam) -> None:
    class Handle:
        def apply(self, update: Projected) -> None:
            self.update = update

    full, half = Handle(), Handle()
    states = rule.start(full), rule.start(half)
    rule.step(full, Projected.of(1, 3.0), states[0])
    rule.step(half, Projected.of(1, 3.0), states[1], rate=0.5)
    assert half.update.coefficients.tolist() == pytest.approx([0.5 * full.update.coefficients[0]])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("rule", [Momentum(0.1), Adam(0.1)], ids=str)
def test_dense_gradients_are_refused(rule: Momentum | Adam) -> None:
    with pytest.raises(ConfigError, match="needs slopes"):
        rule.step(None, Dense({}), rule.start(None))  # type: ignore[arg-type]


def test_a_step_of_many_directions_equals_adding_them_one_by_one() -> None:
    whole, single = Quadratic(), Quadratic()
    together = ProjectedTuned(whole, BoundSpace(Hadamard(K), KEY))
    alone = ProjectedTuned(single, BoundSpace(Hadamard(K), KEY))
    values = np.linspace(-1e-2, 1e-2, K).astype(np.float32)
    together.apply(Projected(np.arange(K), values))
    for key in range(K):
        alone.apply(Projected.of(key, float(values[key])))
    assert torch.allclose(whole.w, single.w, atol=1e-6)
    replayed = torch.empty(D)
    BoundSpace(Hadamard(K), KEY).replay(
        replayed, torch.linspace(-1, 2, D), Projected(np.arange(K), values), "w"
    )
    assert torch.equal(whole.w, replayed)
