"""DPZero and DP-AggZO: what clips, what is added, what a closed form and back-propagation say of it, golden numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetune.aggregate import Mean, PrivateMean
from edgetune.core import secret
from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.core.update import Contribution, Projected
from edgetune.data.sampling import Poisson, Shuffled
from edgetune.directions import Rademacher, Source
from edgetune.directions.space import BoundSpace
from edgetune.estimators import Accumulate, Clipped, ClippedVector, TwoPoint
from edgetune.estimators.clipped import Private
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.tune import ProjectedTuned
from edgetune.updates import Sgd

D, KEY, RECORDS = 12, pool_key(3), 7
DPZERO, AGGZO = tuning_method("dpzero"), tuning_method("dp_aggzo")
OPEN: Any = {"clip": math.inf, "epsilon": 0.0}


class Records(nn.Module):
    """l_i(w) = a_i w: the gradient of every record is known, and its slope along z is a_i z at any radius."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.linspace(-1, 1, D), requires_grad=False)
        self.a = torch.randn(RECORDS, D, generator=torch.Generator().manual_seed(1))


class Losses:
    """The objective of `Records`; a batch's ids name its records."""

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        return self.records(model, batch)[0].mean()

    def records(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        rows = batch.input_ids[:, 0]
        return model(rows), torch.ones(len(rows), dtype=torch.int64)


class Model(Records):
    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.a[rows] @ self.w


def batch(rows: list[int], expected: int = 0) -> Batch:
    ids = torch.tensor(rows, dtype=torch.int64).view(-1, 1)
    return Batch(ids, torch.ones_like(ids), ids, expected)


def tuned() -> tuple[Model, ProjectedTuned]:
    model = Model()
    return model, ProjectedTuned(model, BoundSpace(Rademacher(), KEY))


def direction(key: int) -> torch.Tensor:
    return Rademacher().values(Source(KEY), "w", key, 0, D, torch.device("cpu"))


ALL = batch(list(range(RECORDS)))


@pytest.mark.parametrize("kind", [Clipped, ClippedVector])
def test_without_bound_and_noise_it_is_the_two_point_estimate(kind: type[Private]) -> None:
    _, handle = tuned()
    found = kind(1e-2, directions=3, **OPEN)(handle, Losses(), ALL, 4, 5, 6)
    plain = TwoPoint(1e-2, 3)(handle, Losses(), ALL, 4, 5, 6)
    assert found.update.keys.tolist() == plain.update.keys.tolist() == [4, 5, 6]
    np.testing.assert_allclose(found.update.coefficients, plain.update.coefficients, atol=2e-5)
    assert found.loss == pytest.approx(plain.loss, abs=1e-6)


def test_slopes_are_clipped_one_by_one_or_as_a_vector() -> None:
    model, handle = tuned()
    keys = (1, 2, 3, 4)
    exact = torch.stack([model.a @ direction(key) for key in keys]).double().numpy()  # [directions, records]
    bound = float(np.median(np.abs(exact)))
    alone = np.clip(exact, -bound, bound).sum(1) / (RECORDS * len(keys))
    found = Clipped(1e-1, bound, 0.0, 4)(handle, Losses(), ALL, *keys)
    np.testing.assert_allclose(found.update.coefficients, alone, atol=1e-4)
    together = np.zeros(len(keys))
    bound = float(np.median(np.linalg.norm(exact, axis=0)))
    for record in exact.T:
        together += record * min(1, bound / np.linalg.norm(record))
    found = ClippedVector(1e-1, bound, 0.0, 4)(handle, Losses(), ALL, *keys)
    np.testing.assert_allclose(found.update.coefficients, together / (RECORDS * len(keys)), atol=1e-4)


@pytest.mark.parametrize("kind", [Clipped, ClippedVector])
def test_one_record_more_or_less_moves_the_sum_by_no_more_than_the_bound(kind: type[Private]) -> None:
    _, handle = tuned()
    estimate, keys = kind(1e-1, 0.5, 0.0, directions=4), (1, 2, 3, 4)
    moved = []
    for record in range(RECORDS):
        others = batch([row for row in range(RECORDS) if row != record], RECORDS)
        with_it = estimate(handle, Losses(), batch(list(range(RECORDS)), RECORDS), *keys).update
        without = estimate(handle, Losses(), others, *keys).update
        moved.append((with_it.coefficients - without.coefficients) * RECORDS * len(keys))  # type: ignore[union-attr]
    most = np.abs(moved).max() if kind is Clipped else np.linalg.norm(moved, axis=1).max()
    assert 0.49 < most <= 0.5 + 1e-5


def test_no_slope_and_no_number_count_as_nothing() -> None:
    estimate = ClippedVector(1e-2, 1.0, 0.0, 3)
    slopes = np.array([[0.0, 0.0, 3.0], [0.0, 1e200, 4.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(estimate.clipped(slopes), [[0, 0, 0.6], [0, 1, 0.8], [0, 0, 0]])
    model, handle = tuned()
    model.a[2] = math.nan
    model.a[3] = math.inf
    found = Clipped(1e-1, 1e3, 0.0)(handle, Losses(), ALL, 1)
    kept = [row for row in range(RECORDS) if row not in (2, 3)]
    exact = float((model.a[kept] @ direction(1)).sum()) / RECORDS
    assert found.is_finite
    assert found.dropped == 2
    assert float(found.update.coefficients[0]) == pytest.approx(exact, abs=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize(("kind", "length"), [(Clipped, 3.0), (ClippedVector, 3.0)])
def test_noise_has_the_length_of_the_formula(kind: type[Private], length: float) -> None:
    """An empty batch is noise alone: n directions of variance (sigma C / (B n))^2 each."""
    _, handle = tuned()
    estimate, keys = kind(1e-2, 2.0, 0.0, directions=64, noise_multiplier=1.5), tuple(range(64))
    draws = np.stack(
        [estimate(handle, Losses(), batch([], 8), *keys).update.coefficients for _ in range(100)]  # type: ignore[union-attr]
    ).astype(np.float64)
    expected = length / (8 * 64)
    assert math.sqrt((draws**2).mean()) == pytest.approx(expected, rel=0.05)
    assert abs(draws.mean()) < 4 * expected / math.sqrt(draws.size)
    assert np.unique(draws).size > 0.99 * draws.size


def test_secret_numbers_are_normal_and_never_the_same() -> None:
    drawn = secret.normal(40_000)
    assert drawn.mean() == pytest.approx(0, abs=0.025)
    assert drawn.var() == pytest.approx(1, abs=0.04)
    assert (drawn**4).mean() == pytest.approx(3, abs=0.3)
    inside = float((np.abs(drawn) < 1).mean())
    assert inside == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.012)
    assert not np.array_equal(secret.normal(4), secret.normal(4))
    even = secret.uniform(40_000)
    assert even.min() > 0
    assert even.max() <= 1
    assert even.mean() == pytest.approx(0.5, abs=0.008)


@pytest.mark.parametrize("kind", [Clipped, ClippedVector])
def test_the_estimate_is_the_gradient_on_average(kind: type[Private]) -> None:
    """Against back-propagation: along an orthogonal set of all sign vectors the mean is exact but for rounding."""
    model, handle = tuned()
    model.w.requires_grad_(True)
    model(torch.arange(RECORDS)).mean().backward()
    gradient = model.w.grad
    model.w.requires_grad_(False)
    assert gradient is not None
    estimate, total, n = kind(1e-1, directions=4, **OPEN), torch.zeros(D), 600
    for step in range(n):
        update = estimate(handle, Losses(), ALL, *range(4 * step, 4 * step + 4)).update
        for key, value in zip(update.keys.tolist(), update.coefficients.tolist(), strict=True):  # type: ignore[union-attr]
            total += value * direction(key) / n
    spread = float(gradient.norm()) * math.sqrt((D - 1) / (4 * n))
    assert float((total - gradient).norm()) < 1.5 * spread


def test_micro_batches_change_nothing() -> None:
    _, handle = tuned()
    estimate = ClippedVector(1e-1, 0.7, 0.0, 2)
    whole = estimate(handle, Losses(), ALL, 1, 2)
    parts = Accumulate(estimate, 3)(handle, Losses(), ALL, 1, 2)
    np.testing.assert_allclose(parts.update.coefficients, whole.update.coefficients, atol=1e-6)  # type: ignore[union-attr]
    empty = Accumulate(estimate, 3)(handle, Losses(), batch([], 8), 1, 2)
    assert empty.update.coefficients.tolist() == [0, 0]  # type: ignore[union-attr]


def test_the_published_defaults_stand() -> None:
    assert DPZERO.estimate == Clipped(1e-3, 200.0, 6.0, 1, 0.0, 1e-5)
    assert (DPZERO.local, DPZERO.batch_size, DPZERO.sampling) == (Sgd(1e-6), 64, Poisson())
    assert AGGZO.estimate == ClippedVector(1e-3, 5.0, 2.0, 64, 0.0, 1e-5)
    assert (AGGZO.local, AGGZO.batch_size) == (Sgd(8e-5), 64)
    assert DPZERO.estimate.releases == 1  # type: ignore[attr-defined]
    assert with_options(DPZERO, {"directions_per_step": 8}).estimate.releases == 8  # type: ignore[attr-defined]
    assert AGGZO.estimate.releases == 1  # type: ignore[attr-defined]


def test_the_noise_of_a_target_is_found_before_a_step_or_there_is_none() -> None:
    _, handle = tuned()
    with pytest.raises(ConfigError, match="follows from the data and the length"):
        Clipped(1e-2, 1.0, 6.0)(handle, Losses(), ALL, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"clip": 0}, "clip must be a positive"),
        ({"clip": math.inf}, "clip must be finite"),
        ({"epsilon": -1}, "epsilon must be at least 0"),
        ({"delta": 1.0}, "delta must be between"),
        ({"noise_multiplier": -1}, "noise_multiplier must be between"),
        ({"sampling": "shuffled"}, "clipped needs batches that take every record by chance"),
        ({"estimate": "two_point"}, "poisson needs slopes of single records"),
    ],
)
def test_what_protects_nothing_is_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        with_options(DPZERO, options)


def test_a_device_is_hidden_by_the_server_where_devices_share_directions() -> None:
    wanted = {"estimate": "two_point", "sampling": "shuffled", "aggregate": "private_mean"}
    hidden = with_options(DPZERO, {**wanted, "clip": 0.1, "epsilon": 8.0})
    assert (hidden.aggregate, hidden.sampling) == (PrivateMean(0.1, 8.0), Shuffled())
    assert hidden.protection == hidden.aggregate
    with pytest.raises(ConfigError, match="private_mean in place of mean needs clip, epsilon"):
        with_options(DPZERO, wanted)
    with pytest.raises(ConfigError, match="private_mean does not go with noise that hides records"):
        replace(DPZERO, aggregate=PrivateMean(1.0, 1.0))
    with pytest.raises(ConfigError, match="private_mean needs directions that all devices of a round share"):
        with_options(tuning_method("mezo"), {"aggregate": "private_mean", "clip": 1.0, "epsilon": 1.0})


def _sent(device: int, *coefficients: float) -> Contribution:
    update = Projected(np.arange(len(coefficients)), np.array(coefficients, np.float32))
    return Contribution(device, 5 + device, 0.0, 0, update)


def test_devices_are_clipped_as_vectors_and_count_alike() -> None:
    sent = [_sent(1, 3.0, 4.0), _sent(0, 0.3, -0.4)]
    found = PrivateMean(1.0, 0.0).combine(sent, Projected.none(), {})
    assert isinstance(found, Projected)
    np.testing.assert_allclose(found.coefficients, [(0.6 + 0.3) / 2, (0.8 - 0.4) / 2], rtol=1e-6)
    open_ = PrivateMean(math.inf, 0.0).combine(sent, Projected.none(), {})
    plain = Mean(by_examples=False).combine(sent, Projected.none(), {})
    assert isinstance(open_, Projected)
    assert isinstance(plain, Projected)
    np.testing.assert_allclose(open_.coefficients, plain.coefficients, rtol=1e-6)
    with pytest.raises(ConfigError, match="same directions"):
        PrivateMean(1.0, 0.0).combine([_sent(0, 1.0), _sent(1, 1.0, 2.0)], Projected.none(), {})


def test_noise_of_the_server_has_a_length_of_root_k_and_hides_directions_that_nobody_moved() -> None:
    aggregate, sent = (
        PrivateMean(0.5, 0.0, noise_multiplier=2.0),
        [_sent(id, *[0.0] * 400) for id in range(4)],
    )
    lengths = []
    for _ in range(50):
        found = aggregate.combine(sent, Projected.none(), {})
        assert isinstance(found, Projected)
        lengths.append(float(np.linalg.norm(found.coefficients)))
    assert np.mean(lengths) == pytest.approx(math.sqrt(400) * 2.0 * 0.5 / 4, rel=0.05)
    moved = Projected.of(7, 0.5).over([3, 7, 3, 9])
    assert (moved.keys.tolist(), moved.coefficients.tolist()) == ([3, 7, 9], [0.0, 0.5, 0.0])


def test_golden_slopes() -> None:
    """Printed by this code where the tests above passed: the records and directions of this file, sigma 0, C 3."""
    _, handle = tuned()
    found = replace(AGGZO.estimate, eps=1e-1, clip=3.0, epsilon=0.0, directions=4)(
        handle, Losses(), ALL, 1, 2, 3, 4
    )  # type: ignore[call-arg]
    np.testing.assert_allclose(found.update.coefficients, [0.01442, 0.122011, 0.018576, 0.131488], atol=2e-6)  # type: ignore[union-attr]
