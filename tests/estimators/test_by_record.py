"""A direction a record: slopes by hand, in one pass or record by record, and what is dropped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from edgetune.core.batch import Batch, response_loss, response_losses
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.update import Estimate, Projected
from edgetune.directions import Hadamard, Rademacher, RankOne, RankOnePool
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Accumulate, ByRecord, OneSided, Standardised, TwoPoint
from edgetune.tune import ProjectedTuned, projected

KEY, EPS = pool_key(1), 1e-2
KEYS = (7, 1, 5, 3)
KINDS = [Rademacher(), Hadamard(64), RankOne(), RankOnePool(64)]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def batch_of(records: int = 4) -> Batch:
    ids = torch.randint(1, 90, (records, 12), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    for row in range(records):
        labels[row, : 2 + row] = -100
    return Batch(ids, torch.ones_like(ids), labels)


def slopes_by_hand(tuned: ProjectedTuned, batch: Batch, keys: tuple[int, ...]) -> np.ndarray[Any, Any]:
    total = batch.response_tokens
    found = []
    for row, key in enumerate(keys):
        one = Batch(
            batch.input_ids[row : row + 1], batch.attention_mask[row : row + 1], batch.labels[row : row + 1]
        )
        sums, _ = tuned.record_losses(response_losses, one, key, (EPS, -EPS))
        found.append(float(sums[0, 0].double() - sums[1, 0].double()) / (2 * EPS * total))
    return np.array(found)


def said(estimate: Estimate) -> Projected:
    assert isinstance(estimate.update, Projected)
    return estimate.update


@kinds
def test_every_record_gives_a_slope_along_its_own_direction(kind: Any, tiny_model: Any) -> None:
    tuned, batch = projected(tiny_model(), BoundSpace(kind, KEY)), batch_of()
    expected = slopes_by_hand(tuned, batch, KEYS)
    plain = ByRecord(EPS, 4)(tuned, response_loss, batch, *KEYS)
    assert said(plain).keys.tolist() == list(KEYS)
    np.testing.assert_allclose(said(plain).coefficients, expected, rtol=1e-3, atol=2e-5)
    assert plain.loss == pytest.approx(float(response_loss(tuned.model, batch)), abs=0.03)  # curvature
    divided = said(ByRecord(EPS, 4, standardised=True)(tuned, response_loss, batch, *KEYS)).coefficients
    np.testing.assert_allclose(divided, expected / np.std(4 * expected), rtol=5e-3, atol=1e-3)


@kinds
def test_records_that_share_a_direction_add_up_to_its_slope(kind: Any, tiny_model: Any) -> None:
    tuned, batch = projected(tiny_model(), BoundSpace(kind, KEY)), batch_of()
    expected = slopes_by_hand(tuned, batch, (7, 1, 7, 1))
    found = said(ByRecord(EPS, 2)(tuned, response_loss, batch, 7, 1))
    assert found.keys.tolist() == [7, 1]
    np.testing.assert_allclose(found.coefficients, expected.reshape(2, 2).sum(0), rtol=1e-3, atol=4e-5)
    one, ordinary = (
        estimate(tuned, response_loss, batch, 7) for estimate in (ByRecord(EPS, 1), TwoPoint(EPS))
    )
    np.testing.assert_allclose(said(one).coefficients, said(ordinary).coefficients, rtol=1e-3, atol=2e-5)


def test_fewer_records_than_directions_leave_some_untaken(tiny_model: Any) -> None:
    tuned = projected(tiny_model(), BoundSpace(RankOne(), KEY))
    found = ByRecord(EPS, 4)(tuned, response_loss, batch_of(2), *KEYS)
    assert (said(found).keys.tolist(), found.dropped) == ([7, 1], 0)


@kinds
@pytest.mark.parametrize(
    "estimate", [ByRecord(EPS, 4), OneSided(EPS, 4), TwoPoint(EPS, 4)], ids=lambda one: one.name
)
def test_micro_batches_give_the_slopes_of_the_whole(estimate: Any, kind: Any, tiny_model: Any) -> None:
    tuned, batch = projected(tiny_model(), BoundSpace(kind, KEY)), batch_of()
    whole = estimate(tuned, response_loss, batch, *KEYS)
    parts = Accumulate(estimate, 3)(tuned, response_loss, batch, *KEYS)
    assert said(parts).keys.tolist() == said(whole).keys.tolist()
    np.testing.assert_allclose(said(parts).coefficients, said(whole).coefficients, rtol=1e-3, atol=5e-5)


class Answering:
    """A handle whose records have given losses, [scales, records], of one token each."""

    def __init__(self, sums: list[list[float]]) -> None:
        self._sums = torch.tensor(sums)

    def own_line_losses(self, batch: Batch, seeds: Any, scales: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return self._sums, torch.ones(self._sums.shape[1], dtype=torch.int64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_record_whose_loss_is_no_number_is_dropped_and_counted(bad: float) -> None:
    handle = Answering([[3.0, bad, 5.0, 1.0], [1.0, 2.0, 1.0, 1.0]])
    found = ByRecord(0.5, 4)(handle, response_loss, batch_of(), *KEYS)
    assert said(found).keys.tolist() == [7, 5, 3]
    assert said(found).coefficients.tolist() == [0.5, 1.0, 0.0]
    assert (found.dropped, found.loss) == (1, pytest.approx(12 / 2 / 3))


@pytest.mark.parametrize("sums", [[[2.0] * 4, [1.0] * 4], [[float("nan")] * 3 + [2.0], [1.0] * 4]])
def test_slopes_without_a_spread_drop_the_step(sums: list[list[float]]) -> None:
    found = ByRecord(0.5, 4, standardised=True)(Answering(sums), response_loss, batch_of(), *KEYS)
    assert not found.is_finite
    assert found.dropped == 4


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_a_standardised_step_does_not_depend_on_the_scale_of_the_loss(scale: float) -> None:
    sums = [[3.0, 2.0, 5.0, 1.0], [1.0, 2.5, 1.0, 1.5]]
    scaled = [[scale * one for one in row] for row in sums]
    estimate = ByRecord(0.5, 4, standardised=True)
    plain, other = (
        said(estimate(Answering(one), response_loss, batch_of(), *KEYS)) for one in (sums, scaled)
    )
    np.testing.assert_allclose(plain.coefficients, other.coefficients, rtol=1e-5)
    assert float(np.std(4 * plain.coefficients)) == pytest.approx(1, rel=1e-5)


def test_the_estimate_is_unbiased_and_varies_less_than_along_one_direction(tiny_model: Any) -> None:
    """Over 300 draws of directions; the gradient's squared length by back-propagation."""
    model, batch = tiny_model(), batch_of()
    tuned = projected(model, BoundSpace(RankOne(), KEY))
    weights = [weight.requires_grad_() for weight in model.parameters()]
    gradients = torch.autograd.grad(response_loss(model, batch), weights)
    squared = sum(float((one.double() ** 2).sum()) for one in gradients)
    names = [name for name, _ in model.named_parameters()]
    for weight in weights:
        weight.requires_grad_(False)
    own, shared = [], []
    for draw in range(300):
        keys = tuple(1000 + 4 * draw + index for index in range(4))
        along = []
        for estimate in (ByRecord(1e-3, 4), TwoPoint(1e-3, 1)):
            found = said(estimate(tuned, response_loss, batch, *keys[: estimate.directions]))
            inner = 0.0
            for key, slope in zip(found.keys.tolist(), found.coefficients.tolist(), strict=True):
                line = tuned.direction(key)
                inner += slope * sum(
                    float((line[n] * g).sum()) for n, g in zip(names, gradients, strict=True)
                )
            along.append(inner / squared)
        own.append(along[0])
        shared.append(along[1])
    error = float(np.std(own)) / len(own) ** 0.5
    assert abs(float(np.mean(own)) - 1) < 4 * error
    assert error < 0.1
    assert np.std(own) < 0.9 * np.std(shared)


def test_impossible_settings_are_refused() -> None:
    for make in (
        lambda: ByRecord(0.0, 4),
        lambda: ByRecord(1e-3, 0),
        lambda: ByRecord(1e-3, 1, standardised=True),
        lambda: Standardised(1e-3, 1),
    ):
        with pytest.raises(ConfigError):
            make()
    assert (ByRecord(1e-3, 9).passes, ByRecord(1e-3, 9).scale(3.0)) == (2, 1.0)
    assert ByRecord(1e-3, 9, standardised=True).scale(3.0) == 3.0
