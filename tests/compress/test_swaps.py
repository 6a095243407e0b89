"""Swaps of one weight for another, against trying every pair."""

from __future__ import annotations

import itertools

import pytest
import torch

from edgetune.compress import swaps
from edgetune.compress.masking import AtOutput, NofM, Unstructured
from edgetune.compress.swaps import swap

from .problems import problem


def case(seed: int, rows: int = 5, columns: int = 8) -> tuple[torch.Tensor, ...]:
    """Target, Hessian, weights that are not the target's (a mask half kept, values moved), mask."""
    target, hessian = problem(rows, columns, seed, tokens=4 * columns)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    luck = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, columns, generator=luck).argsort(1) < columns // 2
    weights = (target + 0.1 * torch.randn(rows, columns, generator=luck)) * kept
    return target, hessian, weights, kept


def objective(target: torch.Tensor, hessian: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    error = weights.double() - target.double()
    return ((error @ hessian.double()) * error).sum(-1)


def best_of_all(
    target: torch.Tensor, hessian: torch.Tensor, weights: torch.Tensor, kept: torch.Tensor, group: int
) -> tuple[float, torch.Tensor]:
    """Try every pair of one row; the entering weight at the best of its values, found by least squares."""
    least, found = float(objective(target, hessian, weights)), weights
    pairs = itertools.product(kept.nonzero()[:, 0].tolist(), kept.logical_not().nonzero()[:, 0].tolist())
    for leaves, enters in pairs:
        if leaves // group != enters // group:
            continue
        other = weights.double().clone()
        other[leaves] = 0
        missing = (target.double() - other) @ hessian.double()
        other[enters] = missing[enters] / hessian[enters, enters].double()
        value = float(objective(target, hessian, other))
        if value < least:
            least, found = value, other
    return least, found


@pytest.mark.parametrize("group", [8, 4, 2])
@pytest.mark.parametrize("seed", range(4))
def test_every_swap_is_the_best_of_all_pairs_until_none_helps(seed: int, group: int) -> None:
    target, hessian, weights, kept = case(seed)
    if group < 8:
        kept = ~NofM(group // 2, group).removed(torch.rand(5, 8), by_row=True)
        weights = target * kept
    for _ in range(12):
        after, mask = swap(target, hessian, weights, kept, 1, None if group == 8 else group)
        for row in range(5):
            least, found = best_of_all(target[row], hessian, weights[row], kept[row], group)
            torch.testing.assert_close(after[row].double(), found.double(), rtol=1e-4, atol=1e-5)
            assert float(objective(target[row], hessian, after[row])) == pytest.approx(least, rel=1e-4)
        if torch.equal(mask, kept):
            break
        weights, kept = after, mask
    else:
        pytest.fail("a mask of 8 columns was still swapping after 12 swaps")


def test_many_swaps_in_one_call_are_single_swaps_one_after_another() -> None:
    target, hessian, weights, kept = case(9, rows=7, columns=32)
    together = swap(target, hessian, weights, kept, 6)
    for _ in range(6):
        weights, kept = swap(target, hessian, weights, kept, 1)
    torch.testing.assert_close(together[0], weights, rtol=1e-4, atol=1e-5)
    assert torch.equal(together[1], kept)


def test_a_few_that_may_leave_are_the_cheapest_and_end_nearly_as_low() -> None:
    target, hessian, weights, kept = case(4, rows=24, columns=64)
    before = float(objective(target, hessian, weights).sum())
    few, every = (
        float(objective(target, hessian, swap(target, hessian, weights, kept, 40, leaving=n)[0]).sum())
        for n in (4, 64)
    )
    assert every < 0.9 * before
    assert few < every + 0.05 * (before - every)


def test_rows_taken_in_chunks_are_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    target, hessian, weights, kept = case(2, rows=9, columns=16)
    whole = swap(target, hessian, weights, kept, 4)
    monkeypatch.setattr(swaps, "AT_ONCE", 2 * 16 * 16)
    parts = swap(target, hessian, weights, kept, 4)
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0])


def test_counts_stay_by_row_and_by_group_and_what_left_is_nothing() -> None:
    target, hessian = problem(16, 64, 1)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    worth = AtOutput()(target, torch.ones(64), hessian.diagonal())
    for pattern, group in ((NofM(2, 4), 4), (Unstructured(0.5), 64)):
        kept = ~pattern.removed(worth, by_row=True)
        after, mask = swap(target, hessian, target * kept, kept, 50, group)
        assert torch.equal(mask.reshape(16, -1, group).sum(2), kept.reshape(16, -1, group).sum(2))
        assert not after[~mask].any()
        before = objective(target, hessian, target * kept).sum()
        assert float(objective(target, hessian, after).sum()) < 0.8 * float(before)


def test_rows_without_a_pair_and_rows_without_error_stay() -> None:
    target, hessian, weights, kept = case(3)
    kept[0], weights[0] = False, 0.0
    kept[1], weights[1] = True, target[1]
    target[2] = weights[2]
    after, mask = swap(target, hessian, weights, kept, 3)
    assert torch.equal(after[:3], weights[:3])
    assert torch.equal(mask[:3], kept[:3])
    assert bool(torch.isfinite(after).all())
