"""Differences over the spread of the losses: a closed form, any scale of the loss, and losses without a spread."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.update import Estimate
from edgetune.directions import Gaussian, Hadamard, Rademacher, Source
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Accumulate, OneSided, Standardised
from edgetune.tune import ProjectedTuned

D, KEY, KEYS = 24, pool_key(1), (7, 1, 5, 3)
BATCH = Batch(*(torch.zeros(1, 1, dtype=torch.int64),) * 3)
Objective = Callable[[nn.Module, Batch], torch.Tensor]


class Quadratic(nn.Module):
    """L(w) = sum_i h_i (w_i - 1)^2 / 2, in float64 of float32 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 2, D), requires_grad=False)
        self.curvature = torch.linspace(0.1, 2, D).double()

    def forward(self) -> torch.Tensor:
        return (self.curvature * (self.w.double() - 1) ** 2).sum() / 2


def times(scale: float) -> Objective:
    return lambda model, batch: scale * model()


def tuned(kind: Any = None) -> ProjectedTuned:
    return ProjectedTuned(Quadratic(), BoundSpace(kind or Rademacher(), KEY))


def said(*answers: float, directions: int = 4) -> Estimate:
    """Return the estimate where the losses at w, w + eps z_1, ... are these."""
    given = iter(answers)

    def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
        return torch.tensor(next(given), dtype=torch.float64)

    return Standardised(0.5, directions)(tuned(), objective, BATCH, *KEYS[:directions])


def coefficients(estimate: Estimate) -> list[float]:
    return estimate.update.coefficients.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", [Rademacher(), Gaussian(), Hadamard(32)], ids=lambda kind: kind.name)
def test_on_a_quadratic_the_differences_and_their_spread_have_a_closed_form(kind: Any) -> None:
    handle, eps = tuned(kind), 0.125
    model: Any = handle.model
    gradient = model.curvature * (model.w.double() - 1)
    lines = [kind.values(Source(KEY), "w", key, 0, D, torch.device("cpu")).double() for key in KEYS]
    ahead = [eps * float(gradient @ z) + eps**2 / 2 * float((model.curvature * z**2).sum()) for z in lines]
    mean = sum(ahead) / 4
    spread = math.sqrt(sum((one - mean) ** 2 for one in ahead) / 4)
    found = Standardised(eps, 4)(handle, times(1.0), BATCH, *KEYS)
    assert coefficients(found) == pytest.approx([one / (4 * spread) for one in ahead], rel=1e-4, abs=1e-6)
    assert found.update.keys.tolist() == list(KEYS)  # type: ignore[union-attr]
    assert (found.loss, found.dropped) == (pytest.approx(float(model())), 0)


@pytest.mark.parametrize("scale", [2.0**-20, 0.5, 3.0, 1e6])
def test_the_step_does_not_depend_on_the_scale_of_the_loss(scale: float) -> None:
    plain, scaled = (Standardised(0.1, 4)(tuned(), times(one), BATCH, *KEYS) for one in (1.0, scale))
    assert coefficients(scaled) == pytest.approx(coefficients(plain), rel=1e-5)
    assert scaled.loss == pytest.approx(scale * plain.loss)


def test_it_is_the_one_sided_estimate_times_one_number() -> None:
    ours, plain = (make(0.1, 4)(tuned(), times(1.0), BATCH, *KEYS) for make in (Standardised, OneSided))
    ratios = np.array(coefficients(ours)) / np.array(coefficients(plain))
    assert ratios == pytest.approx(np.full(4, ratios[0]), rel=1e-5)
    along = np.array(coefficients(plain)) * 4
    assert ratios[0] == pytest.approx(1 / float(np.std(along)), rel=1e-5)


def test_the_spread_tends_to_the_radius_times_the_gradients_length() -> None:
    handle, many = tuned(Hadamard(256)), 256
    model: Any = handle.model
    gradient = model.curvature * (model.w.double() - 1)
    found = Standardised(1e-3, many)(handle, times(1.0), BATCH, *range(many))
    plain = OneSided(1e-3, many)(handle, times(1.0), BATCH, *range(many))
    largest = int(np.abs(coefficients(plain)).argmax())
    slope = coefficients(plain)[largest] / coefficients(found)[largest]
    assert slope == pytest.approx(float(gradient.norm()), rel=0.02)
    assert Standardised(1e-3).scale(slope) == slope


def test_a_step_is_one_forward_pass_more_than_directions() -> None:
    handle, calls = tuned(), []

    def counted(model: nn.Module, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return model()

    Standardised(1e-2, 4)(handle, counted, BATCH, *KEYS)
    assert len(calls) == Standardised(1e-2, 4).passes == 5


def test_losses_that_are_no_numbers_are_left_out_of_the_spread_and_counted() -> None:
    found = said(2.0, 3.0, math.nan, 5.0, math.inf)
    assert (found.dropped, found.loss) == (2, 2.0)
    assert found.update.keys.tolist() == [7, 5]  # type: ignore[union-attr]
    assert coefficients(found) == [0.5, 1.5]  # the two lie 1 from their mean


@pytest.mark.parametrize(
    "answers",
    [
        (2.0, 3.0, 3.0, 3.0, 3.0),
        (2.0, 0.1 + 0.2, 0.1 + 0.2, 0.1 + 0.2, 0.1 + 0.2),
        (2.0, 3.0, math.nan, math.inf, math.nan),
        (2.0, *[math.nan] * 4),
        (math.nan, 1.0, 2.0, 3.0, 4.0),
        (2.0, *[-1.7e308, 1.7e308] * 2),
    ],
    ids=["equal", "equal, inexact", "one", "none", "here", "beyond float64"],
)
def test_a_step_without_a_spread_is_dropped(answers: tuple[float, ...]) -> None:
    found = said(*answers)
    assert not found.is_finite
    assert found.dropped == 4


def test_a_spread_that_rounding_makes_of_three_equal_losses_is_none() -> None:
    found = said(1.0, 0.1, 0.1, 0.1, directions=3)
    assert float(np.std([0.1, 0.1, 0.1])) != 0  # what dividing by it naively would take
    assert not found.is_finite


def test_micro_batches_are_standardised_together(tiny_model: Any) -> None:
    ids = torch.randint(1, 90, (5, 12), generator=torch.Generator().manual_seed(3))
    batch = Batch(ids, torch.ones_like(ids), ids.clone())
    handle = ProjectedTuned(tiny_model(), BoundSpace(Rademacher(), KEY))
    whole = Standardised(1e-1, 4)(handle, response_loss, batch, *KEYS)
    parts = Accumulate(Standardised(1e-1, 4), 2)(handle, response_loss, batch, *KEYS)
    assert coefficients(parts) == pytest.approx(coefficients(whole), rel=1e-2, abs=1e-3)


def test_one_direction_has_no_spread_and_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 directions"):
        Standardised(1e-3, 1)
    with pytest.raises(ConfigError, match="eps"):
        Standardised(0.0)
