"""Conjugate gradients on a support, against least squares for every row."""

from __future__ import annotations

import itertools

import pytest
import torch

from edgetune.compress.polish import polish

from .problems import problem


def objective(target: torch.Tensor, hessian: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """f of every row, float64."""
    error = weights.double() - target.double()
    return ((error @ hessian.double()) * error).sum(1)


def least_squares(target: torch.Tensor, hessian: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The best weights of every row on its support, float64."""
    found = torch.zeros_like(target, dtype=torch.float64)
    h, t = hessian.double(), target.double()
    for row, mask in enumerate(kept):
        if mask.any():
            found[row, mask] = torch.linalg.solve(h[mask][:, mask], (t[row] @ h)[mask])
    return found


def case(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    target, hessian = problem(6, 48, seed)
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    kept = torch.rand(6, 48, generator=torch.Generator().manual_seed(seed)) < 0.5
    kept[0], kept[1] = True, False
    return target, hessian, kept


@pytest.mark.parametrize("seed", range(3))
def test_it_ends_at_the_least_squares_solution_of_every_row(seed: int) -> None:
    target, hessian, kept = case(seed)
    solved = polish(target, hessian, torch.zeros_like(target), kept, 200)
    expected = least_squares(target, hessian, kept)
    torch.testing.assert_close(solved.double(), expected, rtol=1e-3, atol=1e-4)
    assert not solved[~kept].any()
    reached, best = objective(target, hessian, solved), objective(target, hessian, expected)
    assert bool((reached[1:] <= best[1:] * (1 + 1e-5)).all())
    assert bool(torch.isfinite(solved).all())


def test_no_step_makes_any_row_worse_and_few_do_most_of_the_work() -> None:
    target, hessian, kept = case(5)
    start = target * kept
    values = [objective(target, hessian, polish(target, hessian, start, kept, steps)) for steps in range(13)]
    for before, after in itertools.pairwise(values):
        assert bool((after <= before * (1 + 1e-5) + 1e-6).all())
    best = objective(target, hessian, least_squares(target, hessian, kept))
    left = (values[12] - best).sum() / (values[0] - best).sum()
    assert left < 0.05


def test_a_start_is_masked_first_and_left_as_it_is() -> None:
    target, hessian, kept = case(1)
    start = target.clone()
    assert torch.equal(polish(target, hessian, start, kept, 0), target * kept)
    assert torch.equal(start, target)
