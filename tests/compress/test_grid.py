from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.compress.grid import AbsMax, ScaleFit, loss_of, nearest_codes
from edgetune.compress.rounding import round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.core.errors import ModelError
from edgetune.core.quantised import GRIDS, Q4_0, Q4_1, Q8_0, BlockGrid

FITS = [AbsMax(), LeastError()]
EVERY = pytest.mark.parametrize("grid", GRIDS.values(), ids=str)
ONES = torch.ones(32)


def blocks(count: int, seed: int, spread: float = 0.0, width: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.exp(
        spread * torch.randn(count, 1, generator=generator)
    )


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 1.0, 4.0]),
    name=st.sampled_from(sorted(GRIDS)),
)
def test_a_searched_step_is_never_worse_than_the_plain_one(seed: int, spread: float, name: str) -> None:
    grid = GRIDS[name]
    x = blocks(64, seed, spread)
    weight = torch.rand(32, generator=torch.Generator().manual_seed(seed)) + 0.1
    plain = loss_of(x, *AbsMax()(x, weight, grid), weight, grid)
    searched = loss_of(x, *LeastError()(x, weight, grid), weight, grid)
    assert (searched <= plain * (1 + 1e-4) + 1e-30).all()


@EVERY
@pytest.mark.parametrize("fit", FITS)
def test_codes_stay_in_range_and_every_level_is_where_the_file_has_it(fit: ScaleFit, grid: BlockGrid) -> None:
    x = 0.05 * blocks(20, 3, spread=2.0, width=512)
    packed = round_to_nearest(x, grid, fit)
    assert packed.codes.dtype == torch.int8
    assert packed.codes.min() >= grid.low
    assert packed.codes.max() <= grid.high
    for field, stored in zip(grid.fields, packed.numbers, strict=True):
        assert stored.dtype == field.number.dtype
        assert stored.shape == (20, 512 // field.span)
    scale, offset = grid.steps(packed.numbers)
    scale = scale * packed.unit
    groups = grid.level(packed.codes.unflatten(1, (-1, grid.group))).double() * scale.double()[..., None]
    exact = groups if offset is None else groups + offset.double()[..., None]
    torch.testing.assert_close(packed.dequantise().double(), exact.flatten(1), rtol=2e-7, atol=0)
    # Steps are stored before codes are chosen on them.
    again = nearest_codes(x.unflatten(1, (-1, grid.group)), scale, offset, grid).flatten(1)
    assert torch.equal(again.to(torch.int8), packed.codes)


def test_more_bits_are_nearer() -> None:
    x = 0.05 * blocks(40, 4, width=512)
    errors = {
        name: float((round_to_nearest(x, grid, LeastError()).dequantise() - x).square().mean())
        for name, grid in GRIDS.items()
    }
    assert (
        errors["Q2_K"]
        > errors["Q3_K"]
        > errors["MXFP4"]
        > errors["NVFP4"]
        > errors["IQ4_XS"]
        > errors["IQ4_NL"]
    )
    assert errors["Q4_0"] > errors["Q4_K"] > errors["Q5_0"] > errors["Q5_K"] > errors["Q6_K"] > errors["Q8_0"]


def test_a_negative_scale_gives_the_extreme_weight_the_extra_code() -> None:
    x = blocks(400, 5)
    scales, _ = LeastError()(x, ONES, Q4_0)
    assert 0.3 < (scales < 0).float().mean() < 0.7
    extreme = x.gather(1, x.abs().argmax(dim=1, keepdim=True))
    codes = nearest_codes(extreme, scales, None, Q4_0)
    assert (codes.abs() >= 4).all()
    assert (codes <= -7).float().mean() > 0.7


def test_the_search_follows_importance() -> None:
    x = blocks(200, 6)
    weight = torch.ones(32)
    weight[:4] = 100.0
    for grid in (Q4_0, Q4_1):
        plain, weighted = LeastError()(x, ONES, grid), LeastError()(x, weight, grid)
        blind = loss_of(x, *plain, weight, grid).sum()
        assert loss_of(x, *weighted, weight, grid).sum() < 0.8 * blind


def test_eight_bit_scales_are_positive() -> None:
    x = blocks(100, 7)
    for fit in FITS:
        assert (fit(x, ONES, Q8_0)[0] > 0).all()


@EVERY
@pytest.mark.parametrize("fit", FITS)
def test_zero_blocks_become_zero(fit: ScaleFit, grid: BlockGrid) -> None:
    x = torch.zeros(2, 512)
    x[1, :256] = 1.0
    packed = round_to_nearest(x, grid, fit).dequantise()
    assert packed[0].abs().max() < 1e-30
    assert packed[1, 256:].abs().max() < 1e-30
    assert packed[1, :256].tolist() == pytest.approx([1.0] * 256, rel=0.04)


@pytest.mark.parametrize("fit", FITS)
def test_scales_near_the_ends_of_fp16(fit: ScaleFit) -> None:
    largest = torch.zeros(1, 32)
    largest[0, 0] = -65504.0 * 8
    assert round_to_nearest(largest, Q4_0, fit).dequantise()[0, 0] == largest[0, 0]
    subnormal = blocks(1, 8) * 1e-6
    error = (round_to_nearest(subnormal, Q4_0, fit).dequantise() - subnormal).norm() / subnormal.norm()
    assert error < 0.2
    vanishing = round_to_nearest(torch.full((1, 32), 1e-9), Q4_0, fit)
    assert vanishing.dequantise().count_nonzero() == 0


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("bad", [1e6, float("nan"), float("-inf")])
def test_what_fp16_cannot_hold_is_refused_by_name(fit: ScaleFit, bad: float) -> None:
    x = blocks(4, 9)
    x[2, 3] = bad
    with pytest.raises(ModelError, match=r"layers\.1\.down_proj.*row 2"):
        round_to_nearest(x, Q4_0, fit, name="layers.1.down_proj")
