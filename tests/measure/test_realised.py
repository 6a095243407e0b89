"""The realised ratio: closed form for one weight, brute force for many, and a handle in half precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.core.batch import Batch, response_loss
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Gaussian, Hadamard, Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.measure.realised import (
    LEAST,
    Intended,
    Part,
    realised_perturbation,
    realised_ratio,
    realised_update,
    sample_weights,
)
from edgetune.tune import ProjectedTuned

SPACE = BoundSpace(Rademacher(), pool_key(1))
ULP = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
"""Distance from 1 to the next number above it."""


@pytest.mark.parametrize("dtype", list(ULP), ids=str)
@pytest.mark.parametrize(
    ("steps", "ratio"), [(0.4, 0.0), (0.6, 1 / 0.6), (1.0, 1.0), (1.4, 1 / 1.4), (2.0, 1.0)]
)
def test_one_weight_moves_by_whole_units_in_the_last_place(
    dtype: torch.dtype, steps: float, ratio: float
) -> None:
    before, intended = torch.ones(1, dtype=dtype), torch.tensor([steps * ULP[dtype]])
    after = (before.double() + intended.double()).to(dtype)
    assert realised_ratio(after.double() - before.double(), intended) == pytest.approx(ratio, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=1, max_size=9))
def test_it_is_the_projection_on_what_was_intended(pairs: list[tuple[float, float]]) -> None:
    norm = math.fsum(intended**2 for _, intended in pairs)
    if norm < 1e-9:
        return
    expected = math.fsum(change * intended for change, intended in pairs) / norm
    change, intended = torch.tensor(pairs, dtype=torch.float64).T
    assert realised_ratio(change, intended) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_nothing_intended_is_nothing_lost() -> None:
    assert realised_ratio(torch.zeros(3), torch.zeros(3)) == 1.0


@pytest.mark.parametrize("kind", [Rademacher(), Gaussian(), Hadamard(64)], ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [torch.float32, *ULP], ids=str)
def test_the_perturbation_ratio_is_that_of_weights_formed_by_hand(dtype: torch.dtype, kind: Any) -> None:
    space, eps = BoundSpace(kind, pool_key(1)), 1e-5
    weight = (0.02 * torch.randn(3000, generator=torch.Generator().manual_seed(0))).to(dtype)
    z = kind.values(space._source, "w", 7, 0, 3000, torch.device("cpu"))
    scale = torch.tensor(eps)
    change = (weight.float() + scale * z).to(dtype).double() - (weight.float() - scale * z).to(dtype).double()
    expected = float((change * z).sum() / (2 * eps * (z.double() ** 2).sum()))
    found = realised_perturbation(space, sample_weights([("w", weight)]), eps, 7)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_half_precision_swallows_small_steps_as_published_in_the_field() -> None:
    weight = 0.02 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    space = BoundSpace(Gaussian(), pool_key(1))
    ratios = [
        realised_perturbation(space, sample_weights([("w", weight.to(dtype))]), 1.5e-6, 0)
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
    ]
    assert ratios == [
        pytest.approx(0.33, abs=0.05),
        pytest.approx(0.04, abs=0.02),
        pytest.approx(1, abs=0.01),
    ]


def test_a_sample_stands_for_every_tensor_by_its_size() -> None:
    weights = {"large": torch.randn(40_000), "small": torch.randn(10), "ids": torch.arange(9)}
    sample = sample_weights(weights.items(), elements=4_000)
    assert [part.name for part in sample] == ["large", "small"]
    assert sum(part.values.numel() * part.share for part in sample) == pytest.approx(40_010)
    assert sample[0].values.numel() >= LEAST
    assert sample[1].share == 1.0
    weights["large"].zero_()
    assert sample[0].values.any()


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(1, 90, (4, 12), generator=torch.Generator().manual_seed(0))
    return Batch(ids, torch.ones_like(ids), ids)


def shown(before: list[Part], tuned: ProjectedTuned) -> float:
    intended = Intended(SPACE, before).form(tuned.delta())
    return realised_update(before, sample_weights(tuned.named_weights()), intended)


def test_what_an_update_means_goes_on_from_what_it_meant() -> None:
    sample = sample_weights([("a", torch.ones(700)), ("b", torch.ones(300))])
    terms = Projected(np.arange(9), np.linspace(0.1, 0.9, 9).astype(np.float32))
    expected = [one.clone() for one in Intended(SPACE, sample).form(terms)]
    parts, drawn = Intended(SPACE, sample), []
    replay = SPACE.replay
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SPACE, "replay", lambda *given: (drawn.append(len(given[2].keys)), replay(*given)))
        for count in (4, 4, 9):
            found = parts.form(Projected(terms.keys[:count], terms.coefficients[:count]))
    assert drawn == [4, 4, 5, 5]
    assert all(map(torch.equal, found, expected))
    back = parts.form(Projected.of(0, 0.5))
    assert torch.equal(back[0], Intended(SPACE, sample).form(Projected.of(0, 0.5))[0])


@pytest.mark.parametrize("dtype", list(ULP), ids=str)
def test_a_handle_shows_the_sum_of_steps_that_it_does_not_show_one_by_one(
    dtype: torch.dtype, tiny_model: Any, batch: Batch
) -> None:
    tuned = ProjectedTuned(tiny_model().to(dtype), SPACE)
    before = sample_weights(tuned.named_weights())
    step = Projected.of(5, 2e-7)
    tuned.apply(step)
    one = shown(before, tuned)
    for _ in range(999):
        tuned.apply(step)
    many = shown(before, tuned)
    assert one < 0.2
    assert many == pytest.approx(1, abs=0.2 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, *ULP], ids=str)
def test_an_update_of_zero_leaves_every_bit_and_counts_as_realised(
    dtype: torch.dtype, tiny_model: Any, batch: Batch
) -> None:
    tuned = ProjectedTuned(tiny_model().to(dtype), SPACE)
    before = sample_weights(tuned.named_weights())
    tuned.losses(response_loss, batch, 3, (1e-3, -1e-3))
    tuned.apply(Projected.of(3, 0.0))
    after = sample_weights(tuned.named_weights())
    assert all(torch.equal(a.values, b.values) for a, b in zip(before, after, strict=True))
    assert shown(before, tuned) == 1.0
