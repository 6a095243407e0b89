"""Forward-mode slopes against back-propagation, a closed form, and finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.directions import Gaussian, Rademacher, RankOnePool, Source
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Jvp, TwoPoint
from edgetune.tune import ByTable, FullProjected, Lora, ProjectedTuned, Writers

KEY = pool_key(1)
EMPTY = Batch(*(torch.zeros(1, 1, dtype=torch.int64),) * 3)


class Cubic(nn.Module):
    """L(w) = sum_i w_i^3: its two-point slope is off by eps^2 sum_i z_i^3."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 2, 16, dtype=torch.float64), requires_grad=False)

    def forward(self) -> torch.Tensor:
        return (self.w**3).sum()


def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model()


def batch() -> Batch:
    ids = torch.randint(1, 90, (3, 9), generator=torch.Generator().manual_seed(3))
    return Batch(ids, torch.ones_like(ids), ids.clone())


def test_the_slope_is_the_gradient_times_the_direction() -> None:
    tuned = ProjectedTuned(Cubic(), BoundSpace(Gaussian(), KEY))
    found = Jvp()(tuned, objective, EMPTY, 5)
    z = Gaussian().values(Source(KEY), "w", 5, 0, 16, torch.device("cpu")).double()
    w = torch.linspace(-1, 2, 16, dtype=torch.float64)
    assert found.loss == pytest.approx(float((w**3).sum()))
    assert float(found.update.coefficients[0]) == pytest.approx(float((3 * w**2 * z).sum()), rel=1e-6)


def test_finite_differences_tend_to_it_with_the_square_of_the_radius() -> None:
    tuned = ProjectedTuned(Cubic(), BoundSpace(Gaussian(), KEY))
    exact = float(Jvp()(tuned, objective, EMPTY, 5).update.coefficients[0])
    z = Gaussian().values(Source(KEY), "w", 5, 0, 16, torch.device("cpu")).double()
    for eps in (0.4, 0.2, 0.1):
        near = float(TwoPoint(eps)(tuned, objective, EMPTY, 5).update.coefficients[0])
        assert near - exact == pytest.approx(eps**2 * float((z**3).sum()), rel=1e-3)


@pytest.mark.parametrize(
    "target", [Lora(2, 4.0), FullProjected(), FullProjected(scaling=ByTable((("mlp", 2.0),)))]
)
def test_a_models_slope_is_that_of_back_propagation(target: Any, tiny_model: Any) -> None:
    model = tiny_model()
    tuned = target.open(model, BoundSpace(Rademacher(), KEY), 0)
    found = Jvp(2)(tuned, response_loss, batch(), 3, 4)
    parameters = dict(tuned.model.named_parameters())
    weights = {name: parameters[name] for name, _ in tuned.named_weights()}
    for weight in weights.values():
        weight.requires_grad_(True)
    gradients = torch.autograd.grad(response_loss(tuned.model, batch()), list(weights.values()))
    for key, slope in zip(found.update.keys.tolist(), found.update.coefficients.tolist(), strict=True):
        direction = tuned.direction(key)
        expected = sum(
            float((gradient * direction[name]).sum())
            for name, gradient in zip(weights, gradients, strict=True)
        )
        assert 2 * slope == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_no_direction_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one direction"):
        Jvp(0)


@pytest.mark.parametrize("target", [FullProjected(), Writers()], ids=["all weights", "writers"])
def test_weights_that_a_model_does_not_hold_have_no_derivatives(target: Any, tiny_model: Any) -> None:
    tuned = target.open(tiny_model(), BoundSpace(RankOnePool(64), KEY, pooled=True), 0)
    with pytest.raises(ConfigError, match="weights that the model holds"):
        Jvp()(tuned, response_loss, batch(), 3)
