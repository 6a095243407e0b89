from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.compress.grid import AbsMax, ScaleFit, SignedSearch, nearest_codes, representable
from edgetune.compress.rounding import round_to_nearest
from edgetune.core.errors import ModelError
from edgetune.core.quantised import Q4_0, Q8_0, BlockGrid

FITS = [AbsMax(), SignedSearch()]
ONES = torch.ones(32)


def blocks(count: int, seed: int, spread: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 32, generator=generator) * torch.exp(
        spread * torch.randn(count, 1, generator=generator)
    )


def loss(x: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, grid: BlockGrid) -> torch.Tensor:
    rounded = nearest_codes(x, scales, grid) * scales[:, None]
    return ((rounded - x).double().square() * weight).sum(dim=1)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0.0, 1.0, 4.0]), eight=st.booleans())
def test_searched_scale_is_never_worse_than_absmax(seed: int, spread: float, eight: bool) -> None:
    grid = Q8_0 if eight else Q4_0
    x = blocks(64, seed, spread)
    weight = torch.rand(32, generator=torch.Generator().manual_seed(seed)) + 0.1
    plain = loss(x, AbsMax()(x, weight, grid), weight, grid)
    searched = loss(x, SignedSearch()(x, weight, grid), weight, grid)
    assert (searched <= plain * (1 + 1e-6)).all()
    # The textbook symmetric range of +-7.5 steps is no better either.
    if grid is Q4_0:
        textbook = representable(x.abs().amax(dim=1) / 7.5)
        assert searched.sum() < loss(x, textbook, weight, grid).sum()


@pytest.mark.parametrize("grid", [Q4_0, Q8_0])
@pytest.mark.parametrize("fit", FITS)
def test_codes_stay_in_range_and_dequantise_exactly(fit: ScaleFit, grid: BlockGrid) -> None:
    x = blocks(200, 3, spread=3.0).reshape(50, 128)
    packed = round_to_nearest(x, grid, fit)
    assert packed.codes.dtype == torch.int8
    assert packed.scales.dtype == torch.float16
    assert packed.codes.min() >= grid.low
    assert packed.codes.max() <= grid.high
    exact = packed.codes.double().reshape(50, 4, 32) * packed.scales.double()[..., None]
    assert torch.equal(packed.dequantise().double(), exact.reshape(50, 128))


@pytest.mark.parametrize("fit", FITS)
def test_scales_are_rounded_before_codes_are_chosen(fit: ScaleFit) -> None:
    x = blocks(300, 4)
    for grid in (Q4_0, Q8_0):
        scales = fit(x, ONES, grid)
        assert torch.equal(scales, scales.half().float())
        packed = round_to_nearest(x, grid, fit)
        codes = (x / scales[:, None]).round().clamp(grid.low, grid.high)
        assert torch.equal(packed.codes.float(), codes)


def test_a_negative_scale_gives_the_extreme_weight_the_extra_code() -> None:
    x = blocks(400, 5)
    scales = SignedSearch()(x, ONES, Q4_0)
    assert 0.4 < (scales < 0).float().mean() < 0.6
    extreme = x.gather(1, x.abs().argmax(dim=1, keepdim=True))
    codes = nearest_codes(extreme, scales, Q4_0)
    assert (codes <= -6).all()


def test_the_search_follows_importance() -> None:
    x = blocks(200, 6)
    weight = torch.ones(32)
    weight[:4] = 100.0
    plain, weighted = SignedSearch()(x, ONES, Q4_0), SignedSearch()(x, weight, Q4_0)
    assert loss(x, weighted, weight, Q4_0).sum() < 0.8 * loss(x, plain, weight, Q4_0).sum()


def test_eight_bit_scales_are_positive() -> None:
    x = blocks(100, 7)
    assert (AbsMax()(x, ONES, Q8_0) > 0).all()
    assert (SignedSearch()(x, ONES, Q8_0) > 0).all()


@pytest.mark.parametrize("grid", [Q4_0, Q8_0])
@pytest.mark.parametrize("fit", FITS)
def test_zero_and_vanishing_blocks_become_zero(fit: ScaleFit, grid: BlockGrid) -> None:
    x = torch.zeros(3, 64)
    x[1] = 1e-9
    x[2, :32] = 1.0
    packed = round_to_nearest(x, grid, fit)
    assert packed.scales[:2].count_nonzero() == 0
    assert packed.codes[:2].count_nonzero() == 0
    assert packed.dequantise()[2].tolist() == pytest.approx([1.0] * 32 + [0.0] * 32, rel=1e-3)


@pytest.mark.parametrize("fit", FITS)
def test_scales_near_the_ends_of_fp16(fit: ScaleFit) -> None:
    largest = torch.zeros(1, 32)
    largest[0, 0] = -65504.0 * 8
    assert round_to_nearest(largest, Q4_0, fit).dequantise()[0, 0] == largest[0, 0]
    subnormal = blocks(1, 8) * 1e-6
    error = (round_to_nearest(subnormal, Q4_0, fit).dequantise() - subnormal).norm() / subnormal.norm()
    assert error < 0.2
    assert float(representable(torch.tensor(2.0**-24))) == 0.0


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("bad", [1e6, float("nan"), float("-inf")])
def test_what_fp16_cannot_hold_is_refused_by_name(fit: ScaleFit, bad: float) -> None:
    x = blocks(4, 9)
    x[2, 3] = bad
    with pytest.raises(ModelError, match=r"layers\.1\.down_proj.*row 2"):
        round_to_nearest(x, Q4_0, fit, name="layers.1.down_proj")
