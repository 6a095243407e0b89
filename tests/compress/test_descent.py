"""Passes after the sweep, against the objective itself."""

from __future__ import annotations

import itertools

import pytest
import torch

from edgetune.compress.descent import descend
from edgetune.core.quantised import BLOCK, Q4_0


def problem(seed: int, columns: int = 4 * BLOCK, rows: int = 5) -> tuple[torch.Tensor, ...]:
    """Return target [d, rows], Hessian, and codes and scales of rounding to nearest."""
    luck = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * columns, columns, generator=luck) @ torch.randn(columns, columns, generator=luck)
    hessian = inputs.T @ inputs / len(inputs)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    target = torch.randn(columns, rows, generator=luck)
    scales = (target.reshape(-1, BLOCK, rows).abs().amax(1) / 7).half()
    codes = (target / scales.float().repeat_interleave(BLOCK, 0)).round().clamp(-8, 7).to(torch.int8)
    return target, hessian, codes, scales


def objective(
    target: torch.Tensor, hessian: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """Return f of every row, float64."""
    error = (codes.double() * scales.double().repeat_interleave(BLOCK, 0)) - target.double()
    return (error * (hessian.double() @ error)).sum(0)


@pytest.mark.parametrize("seed", range(3))
def test_no_pass_makes_any_row_worse_and_the_first_helps(seed: int) -> None:
    target, hessian, codes, scales = problem(seed)
    values = [objective(target, hessian, codes, scales)]
    for _ in range(3):
        descend(target, hessian, codes, [scales], Q4_0, 1)
        values.append(objective(target, hessian, codes, scales))
    for before, after in itertools.pairwise(values):
        assert bool((after <= before * (1 + 1e-5)).all())
    assert bool((values[1] < 0.9 * values[0]).all())


def test_where_it_ends_no_single_code_and_no_scale_is_better() -> None:
    target, hessian, codes, scales = problem(7, columns=BLOCK, rows=3)
    descend(target, hessian, codes, [scales], Q4_0, 60)
    least = objective(target, hessian, codes, scales)
    for column in range(BLOCK):
        for code in range(Q4_0.low, Q4_0.high + 1):
            other = codes.clone()
            other[column] = code
            assert bool((objective(target, hessian, other, scales) >= least * (1 - 1e-5)).all())
    for factor in (0.99, 0.999, 1.001, 1.01):
        assert bool(
            (objective(target, hessian, codes, (scales.float() * factor).half()) >= least * (1 - 1e-4)).all()
        )


def test_without_coupling_it_is_rounding() -> None:
    target, _, codes, scales = problem(2)
    before = codes.clone()
    descend(target, torch.eye(len(target)), codes, [scales.clone()], Q4_0, 0)
    assert torch.equal(codes, before)
    codes.zero_()
    kept = scales.clone()
    descend(target, torch.eye(len(target)), codes, [scales], Q4_0, 1)
    rounded = (target / kept.float().repeat_interleave(BLOCK, 0)).round().clamp(-8, 7).to(torch.int8)
    assert torch.equal(codes, rounded)


def test_a_block_of_nothing_stays_nothing() -> None:
    target, hessian, codes, scales = problem(4)
    codes[:BLOCK], scales[0] = 0, 0
    descend(target, hessian, codes, [scales], Q4_0, 2)
    assert not codes[:BLOCK].any()
    assert bool(torch.isfinite(scales).all())
