"""Layer-wise scaling: perturbed by z / c, moved by c z, unbiased, rebuilt from the same factors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Hadamard, Rademacher
from edgetune.directions.kept import KeptSpace
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.tune import ByNorm, ByTable, FullProjected, ProjectedTuned
from edgetune.tune.scaled import ScaledSpace

KEY = pool_key(3)
BATCH = Batch(*(torch.zeros(1, 1, dtype=torch.int64),) * 3)
SCALES = {"a": 4.0, "b": 0.5}


class Two(nn.Module):
    """L = sum a^2 / 2 + 3 sum b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 2, 12), requires_grad=False)
        self.b = nn.Parameter(torch.linspace(0, 1, 6), requires_grad=False)

    def forward(self) -> torch.Tensor:
        return (self.a**2).sum() / 2 + 3 * self.b.sum()


def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model()


def z(space: Any, name: str, count: int, key: int) -> torch.Tensor:
    out = torch.empty(count)
    space.axpy(out, torch.zeros(count), 1.0, name, key)
    return out


@pytest.mark.parametrize(
    "space", [BoundSpace(Rademacher(), KEY), KeptSpace(Gaussian(), KEY)], ids=["bound", "kept"]
)
def test_the_slope_is_along_z_over_c_and_the_step_along_c_z(space: Any) -> None:
    model = Two()
    tuned, start = ProjectedTuned(model, space, scales=SCALES), {"a": model.a.clone(), "b": model.b.clone()}
    estimate = TwoPoint(0.01)(tuned, objective, BATCH, 5)
    za, zb = z(space, "a", 12, 5), z(space, "b", 6, 5)
    exact = float(model.a @ za) / 4 + float(3 * zb.sum()) / 0.5
    assert float(estimate.update.coefficients[0]) == pytest.approx(exact, rel=1e-3, abs=1e-3)
    tuned.apply(Projected.of(5, 0.25))
    assert torch.allclose(model.a, start["a"] + 0.25 * 4 * za, atol=1e-6)
    assert torch.allclose(model.b, start["b"] + 0.25 * 0.5 * zb, atol=1e-6)


def test_the_scaled_estimate_is_unbiased() -> None:
    model, n, space = Two(), 4000, BoundSpace(Rademacher(), KEY)
    tuned = ProjectedTuned(model, space, scales=SCALES)
    total = torch.zeros(18)
    for key in range(n):
        slope = float(TwoPoint(0.1)(tuned, objective, BATCH, key).update.coefficients[0])
        total += slope * torch.cat([4 * z(space, "a", 12, key), 0.5 * z(space, "b", 6, key)])
    gradient = torch.cat([model.a, torch.full((6,), 3.0)])
    # an element of tensor t varies by c_t^2 |grad / c|^2, at most
    spread = torch.cat([torch.full((12,), 4.0), torch.full((6,), 0.5)]) * float(
        torch.cat([model.a / 4, torch.full((6,), 6.0)]).norm()
    )
    assert bool(((total / n - gradient).abs() < 4.5 * spread / n**0.5).all())


@pytest.mark.parametrize("kind", [Rademacher(), Gaussian(), Hadamard(16)], ids=lambda kind: kind.name)
def test_a_replay_is_the_scaled_sum_and_reset_gives_it_again(kind: Any) -> None:
    space, update = BoundSpace(kind, KEY), Projected(np.arange(5), np.linspace(-1, 1, 5).astype(np.float32))
    out = torch.empty(12)
    ScaledSpace(space, SCALES).replay(out, torch.ones(12), update, "a")
    expected = torch.ones(12)
    for key, coefficient in zip(range(5), update.coefficients.tolist(), strict=True):
        expected += 4 * coefficient * z(space, "a", 12, key)
    assert torch.allclose(out, expected, atol=1e-5)
    first, second = Two(), Two()
    for model in (first, second):
        ProjectedTuned(model, space, scales=SCALES).reset(update)
    assert torch.equal(first.a, second.a)
    assert torch.allclose(first.a, torch.linspace(-1, 2, 12) + expected - 1, atol=1e-5)


def test_factors_from_norms_are_powers_of_two_around_the_geometric_mean() -> None:
    weights = [("a", torch.full((4,), 1.0)), ("b", torch.full((4,), 4.0)), ("c", torch.full((4,), 0.25))]
    assert ByNorm().factors(weights) == {"a": 1.0, "b": 4.0, "c": 0.25}  # norms 2, 8, 1/2: mean 2
    weights += [
        ("zeros", torch.zeros(3)),
        ("huge", torch.full((1,), 2.0**30)),
        ("tiny", torch.full((1,), 2.0**-28)),
    ]
    found = ByNorm().factors(weights)
    assert (found["zeros"], found["huge"], found["tiny"]) == (0.125, 8.0, 0.125)
    assert ByNorm().factors([("zeros", torch.zeros(3))]) == {"zeros": 0.125}


def test_a_table_takes_the_first_part_that_fits(tiny_model: Any) -> None:
    tuned = FullProjected(scaling=ByTable((("mlp.up", 3.0), ("mlp", 0.1)))).open(
        tiny_model(), BoundSpace(Rademacher(), KEY), 0
    )
    for name, scale in tuned.scales.items():
        expected = 3.0 if "mlp.up" in name else float(np.float32(0.1)) if "mlp" in name else 1.0
        assert scale == expected
    with pytest.raises(ConfigError, match="no parameter has this"):
        FullProjected(scaling=ByTable((("mlq", 3.0),))).open(tiny_model(), BoundSpace(Rademacher(), KEY), 0)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_scales_are_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match="between 1e-6 and 1e6"):
        ByTable((("a", scale),))
