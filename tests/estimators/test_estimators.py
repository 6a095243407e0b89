"""The two-point estimate on a quadratic whose gradient is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from edgetune.core.batch import IGNORED, Batch, response_loss, response_losses
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.directions import Gaussian, Hadamard, Rademacher, Source
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Backprop, TwoPoint
from edgetune.tune import ProjectedTuned

D, KEY = 24, pool_key(1)
BATCH = Batch(*(torch.zeros(1, 1, dtype=torch.int64),) * 3)


class Quadratic(nn.Module):
    """L(w) = sum_i c_i (w_i - 1)^2 / 2."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 2, D), requires_grad=False)
        self.curvature = torch.linspace(0.1, 2, D)

    def forward(self) -> torch.Tensor:
        return (self.curvature * (self.w - 1) ** 2).sum() / 2

    def gradient(self) -> torch.Tensor:
        return (self.curvature * (self.w - 1)).detach()


def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model()


@pytest.mark.parametrize("kind", [Rademacher(), Gaussian(), Hadamard(32)], ids=lambda kind: kind.name)
def test_the_slope_of_a_quadratic_is_its_directional_derivative(kind: Any) -> None:
    model = Quadratic()
    tuned, source = ProjectedTuned(model, BoundSpace(kind, KEY)), Source(KEY)
    for key in range(5):
        z = kind.values(source, "w", key, 0, D, torch.device("cpu"))
        estimate = TwoPoint(0.1)(tuned, objective, BATCH, key)
        assert estimate.update.keys.tolist() == [key]
        assert float(estimate.update.coefficients[0]) == pytest.approx(float(model.gradient() @ z), abs=2e-5)
        # L+ and L- average to L plus the curvature along z
        bent = float(model()) + 0.01 * float((model.curvature * z**2).sum()) / 2
        assert estimate.loss == pytest.approx(bent, rel=1e-5)


@pytest.mark.parametrize(("kind", "fourth"), [(Rademacher(), 1), (Gaussian(), 3)], ids=["signs", "gaussian"])
def test_the_mean_of_estimates_approaches_the_gradient_and_varies_as_predicted(
    kind: Any, fourth: int
) -> None:
    model, source = Quadratic(), Source(KEY)
    tuned, gradient, n = ProjectedTuned(model, BoundSpace(kind, KEY)), model.gradient(), 400
    cpu = torch.device("cpu")
    estimates = torch.stack(
        [
            float(TwoPoint(0.1)(tuned, objective, BATCH, key).update.coefficients[0])
            * kind.values(source, "w", key, 0, D, cpu)
            for key in range(n)
        ]
    )
    norm = float(gradient @ gradient)
    # E |g z|^2 = (d + E z^4 - 1) |grad|^2;  of a mean over n directions: ((d + E z^4 - 1) + n - 1) / n
    one = D + fourth - 1
    squares = float((estimates**2).sum(1).mean())
    assert squares == pytest.approx(one * norm, rel=8 / math.sqrt(n))
    for group in (4, 20):
        means = estimates.view(-1, group, D).mean(1)
        expected = (one + group - 1) / group * norm
        assert float((means**2).sum(1).mean()) == pytest.approx(expected, rel=5 / math.sqrt(n / group))
    for count in (40, n):
        error = float((estimates[:count].mean(0) - gradient).norm())
        assert error < 2 * math.sqrt((one - 1) * norm / count)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_gives_an_estimate_that_is_not_finite(loss: float) -> None:
    tuned = ProjectedTuned(Quadratic(), BoundSpace(Rademacher(), KEY))
    answers = iter([1.0, loss, loss, 1.0, loss, loss])
    for _ in range(3):
        estimate = TwoPoint(1e-3)(tuned, lambda model, batch: torch.tensor(next(answers)), BATCH, 1)
        assert not estimate.is_finite


@pytest.mark.parametrize("eps", [0, -1e-3, math.nan, math.inf])
def test_a_radius_that_is_not_positive_is_refused(eps: float) -> None:
    with pytest.raises(ConfigError, match="eps"):
        TwoPoint(eps)


def test_backprop_gives_torchs_gradient() -> None:
    class Handle:
        model = Quadratic().requires_grad_(True)

        def named_weights(self) -> Any:
            return self.model.named_parameters()

    estimate = Backprop()(Handle(), objective, BATCH, 0)
    assert torch.allclose(estimate.update.tensors["w"], Handle.model.gradient())
    assert estimate.loss == pytest.approx(float(Handle.model().detach()))
    assert Handle.model.w.grad is None


def test_the_loss_counts_response_tokens_alone(tiny_model: Any) -> None:
    model = tiny_model()
    ids = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(3))
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, :4], labels[1, 7:], mask[1, 7:] = IGNORED, IGNORED, 0
    batch = Batch(ids, mask, labels)
    logs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    expected = [-sum(float(logs[b, t - 1, ids[b, t]]) for t in range(4, end)) for b, end in ((0, 9), (1, 7))]
    summed, counts = response_losses(model, batch)
    assert summed.tolist() == pytest.approx(expected, rel=1e-5)
    assert counts.tolist() == [5, 3]
    assert float(response_loss(model, batch)) == pytest.approx(sum(expected) / 8, rel=1e-5)
