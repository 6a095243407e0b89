"""Estimates from several directions or micro-batches, against closed forms and the estimates they are made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from edgetune.core.batch import IGNORED, Batch, response_loss, weight_of
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.directions import Gaussian, Hadamard, Rademacher, Source
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Accumulate, Backprop, OneSided, TwoPoint
from edgetune.tune import Lora, ProjectedTuned

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


def objective(model: nn.Module, batch: Batch) -> torch.Tensor:
    return model()


def z(kind: Any, key: int) -> torch.Tensor:
    return kind.values(Source(KEY), "w", key, 0, D, torch.device("cpu"))


def ragged() -> Batch:
    ids = torch.randint(1, 90, (5, 12), generator=torch.Generator().manual_seed(3))
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, :3] = IGNORED
    for row, end in enumerate((12, 5, 8, 6, 9)):
        mask[row, end:], labels[row, end:], ids[row, end:] = 0, IGNORED, 0
    return Batch(ids, mask, labels)


@pytest.mark.parametrize("make", [TwoPoint, OneSided])
def test_n_directions_give_the_mean_of_n_estimates(make: Any) -> None:
    tuned = ProjectedTuned(Quadratic(), BoundSpace(Rademacher(), KEY))
    together = make(1e-2, 4)(tuned, objective, BATCH, 7, 1, 5, 3)
    alone = [make(1e-2)(tuned, objective, BATCH, key) for key in (7, 1, 5, 3)]
    assert together.update.keys.tolist() == [7, 1, 5, 3]
    expected = [float(one.update.coefficients[0]) / 4 for one in alone]
    assert together.update.coefficients.tolist() == pytest.approx(expected, rel=1e-6)
    assert together.loss == pytest.approx(sum(one.loss for one in alone) / 4)


@pytest.mark.parametrize("kind", [Rademacher(), Gaussian(), Hadamard(32)], ids=lambda kind: kind.name)
def test_the_one_sided_slope_is_the_directional_derivative_and_half_eps_of_curvature(kind: Any) -> None:
    model, eps = Quadratic(), 0.125
    tuned = ProjectedTuned(model, BoundSpace(kind, KEY))
    estimate = OneSided(eps, 3)(tuned, objective, BATCH, 0, 1, 2)
    gradient = model.curvature * (model.w - 1)
    for key, coefficient in enumerate(estimate.update.coefficients.tolist()):
        along = z(kind, key)
        exact = float(gradient @ along) + eps / 2 * float((model.curvature * along**2).sum())
        assert 3 * coefficient == pytest.approx(exact, abs=1e-4)
    assert estimate.loss == pytest.approx(float(model()))


def test_one_sided_takes_one_forward_pass_more_than_directions_and_two_point_two_each() -> None:
    tuned, calls = ProjectedTuned(Quadratic(), BoundSpace(Rademacher(), KEY)), []

    def counted(model: nn.Module, batch: Batch) -> torch.Tensor:
        calls.append(1)
        return model()

    OneSided(1e-2, 5)(tuned, counted, BATCH, *range(5))
    assert len(calls) == 6
    TwoPoint(1e-2, 5)(tuned, counted, BATCH, *range(5))
    assert len(calls) == 16


@pytest.mark.parametrize(("kind", "fourth"), [(Rademacher(), 1), (Gaussian(), 3)], ids=["signs", "gaussian"])
def test_the_squared_length_of_an_n_spsa_estimate_is_as_predicted(kind: Any, fourth: int) -> None:
    model, n, draws = Quadratic(), 6, 300
    tuned = ProjectedTuned(model, BoundSpace(kind, KEY))
    gradient = model.curvature * (model.w - 1)
    squares = []
    for draw in range(draws):
        keys = range(draw * n, draw * n + n)
        update = TwoPoint(0.1, n)(tuned, objective, BATCH, *keys).update
        total = sum(c * z(kind, key) for key, c in zip(keys, update.coefficients.tolist(), strict=True))
        squares.append(float(total @ total))
    expected = (D + fourth - 1 + n - 1) / n * float(gradient @ gradient)
    assert sum(squares) / draws == pytest.approx(expected, rel=0.15)


def test_slopes_that_are_no_numbers_are_left_out_and_counted() -> None:
    tuned = ProjectedTuned(Quadratic(), BoundSpace(Rademacher(), KEY))
    answers = iter([3.0, 1.0, math.nan, 1.0, 2.0, math.inf, 1.0, 3.0])
    estimate = TwoPoint(0.5, 4)(tuned, lambda model, batch: torch.tensor(next(answers)), BATCH, 9, 8, 7, 6)
    assert (estimate.dropped, estimate.is_finite, estimate.loss) == (2, True, 2.0)
    assert estimate.update.keys.tolist() == [9, 6]
    assert estimate.update.coefficients.tolist() == [1.0, -1.0]
    answers = iter([1.0, 2.0, math.nan])
    estimate = OneSided(0.5, 2)(tuned, lambda model, batch: torch.tensor(next(answers)), BATCH, 4, 5)
    assert (estimate.dropped, estimate.update.coefficients.tolist()) == (1, [2.0])


def test_a_shared_loss_that_is_no_number_drops_every_direction() -> None:
    tuned = ProjectedTuned(Quadratic(), BoundSpace(Rademacher(), KEY))
    answers = iter([math.nan, 1.0, 2.0])
    estimate = OneSided(0.5, 2)(tuned, lambda model, batch: torch.tensor(next(answers)), BATCH, 4, 5)
    assert not estimate.is_finite
    assert estimate.dropped == 2


@pytest.mark.parametrize("make", [TwoPoint, OneSided])
def test_impossible_estimates_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match="eps"):
        make(0.0)
    with pytest.raises(ConfigError, match="at least one direction"):
        make(1e-3, 0)


def test_micro_batches_hold_the_batch_without_needless_padding() -> None:
    batch = ragged()
    parts = batch.split(2)
    assert [tuple(part.input_ids.shape) for part in parts] == [(2, 12), (2, 8), (1, 9)]
    assert sum(part.response_tokens for part in parts) == batch.response_tokens == 9 + 2 + 5 + 3 + 6
    for first, part in enumerate(parts):
        rows = slice(2 * first, 2 * first + 2)
        length = part.input_ids.shape[1]
        assert torch.equal(part.labels, batch.labels[rows, :length])
        assert not batch.attention_mask[rows, length:].any()


@pytest.mark.parametrize("size", [1, 2, 5, 9])
@pytest.mark.parametrize("make", [TwoPoint, OneSided])
def test_an_accumulated_slope_is_that_of_the_whole_batch(make: Any, size: int, tiny_model: Any) -> None:
    tuned, batch = ProjectedTuned(tiny_model(), BoundSpace(Rademacher(), KEY)), ragged()
    whole = make(1e-2, 2)(tuned, response_loss, batch, 4, 9)
    parts = Accumulate(make(1e-2, 2), size)(tuned, response_loss, batch, 4, 9)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.update.coefficients.tolist() == pytest.approx(whole.update.coefficients.tolist(), abs=2e-4)
    assert abs(whole.update.coefficients).max() > 0.05


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_model: Any) -> None:
    tuned, batch = Lora(rank=2).open(tiny_model(), None, 0), ragged()
    whole = Backprop()(tuned, response_loss, batch)
    parts = Accumulate(Backprop(), 2)(tuned, response_loss, batch, 0)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    for name, gradient in whole.update.tensors.items():
        assert torch.allclose(parts.update.tensors[name], gradient, atol=1e-6)
    assert any(bool(gradient.abs().max() > 1e-3) for gradient in whole.update.tensors.values())


def test_records_weigh_alike_where_the_objective_is_a_mean_over_records() -> None:
    class PerRecord:
        per_record = True

        def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
            return batch.input_ids[:, 0].float().mean()

    batch, tuned = ragged(), ProjectedTuned(Quadratic(), BoundSpace(Rademacher(), KEY))
    assert [weight_of(PerRecord(), part) for part in batch.split(2)] == [2, 2, 1]
    assert [weight_of(response_loss, part) for part in batch.split(2)] == [11, 8, 6]
    found = Accumulate(TwoPoint(0.1), 2)(tuned, PerRecord(), batch, 1)
    assert found.loss == pytest.approx(float(batch.input_ids[:, 0].float().mean()))


def test_a_micro_batch_whose_loss_is_no_number_drops_the_direction() -> None:
    tuned = ProjectedTuned(Quadratic(), BoundSpace(Rademacher(), KEY))
    answers = iter([1.0, 1.0, math.nan, 1.0, 1.0, 1.0])
    estimate = Accumulate(TwoPoint(0.1), 2)(
        tuned, lambda model, batch: torch.tensor(next(answers)), ragged(), 1
    )
    assert not estimate.is_finite
