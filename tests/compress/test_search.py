"""The exact scale, against brute force over a fine list of scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.compress.search import best_scale
from edgetune.core.quantised import GRIDS, IQ4_NL, MXFP4, Q3_K, Q4_0, Q5_0, BlockGrid

SEARCHED = [IQ4_NL, MXFP4, Q3_K, Q4_0, Q5_0]


def loss(x: torch.Tensor, h: torch.Tensor, scales: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Weighted error of every scale, float64 [scales]; the nearest point by trying all."""
    gaps = (scales[:, None, None] * points.double() - x.double()[None, :, None]).square().amin(-1)
    return (gaps * h.double()).sum(-1)


@pytest.mark.parametrize("grid", SEARCHED, ids=str)
@settings(derandomize=True, deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), width=st.sampled_from([1, 5, 16, 32]), skewed=st.booleans())
def test_no_scale_of_either_sign_is_better(grid: BlockGrid, seed: int, width: int, skewed: bool) -> None:
    luck = torch.Generator().manual_seed(seed)
    x = torch.randn(width, generator=luck)
    x = x.abs() if skewed else x
    h = torch.rand(width, generator=luck) + 0.01
    points = grid.points()
    found = best_scale(x, h, points, signed=grid.signed).reshape(1)
    widest = float(x.abs().max() / points.abs().min().clamp(min=1))
    fine = torch.linspace(1e-4, 1, 4000, dtype=torch.float64) * widest * 1.2
    rivals = torch.cat([fine, -fine]) if grid.signed else fine
    energy = float((h * x * x).sum())
    assert float(loss(x, h, found, points)) <= float(loss(x, h, rivals, points).min()) + 1e-5 * energy


def test_zeros_and_worthless_values_have_the_scale_zero() -> None:
    points = Q4_0.points()
    assert best_scale(torch.zeros(3, 32), torch.ones(3, 32), points, signed=True).tolist() == [0, 0, 0]
    assert best_scale(torch.ones(2, 32), torch.zeros(2, 32), points, signed=True).tolist() == [0, 0]


def test_rows_do_not_depend_on_what_is_sorted_with_them() -> None:
    x = torch.randn(50, 32, generator=torch.Generator().manual_seed(3))
    h = torch.ones(50, 32)
    together = best_scale(x, h, Q4_0.points(), signed=True)
    alone = torch.cat([best_scale(row[None], h[:1], Q4_0.points(), signed=True) for row in x])
    assert torch.equal(together, alone)


def test_every_grid_has_ascending_points() -> None:
    for grid in GRIDS.values():
        points = grid.points()
        assert len(points) == grid.high - grid.low + 1
        assert (points[1:] > points[:-1]).all()
