"""The rule Mask in the sweep, against optimal brain surgeon with an inverse for every column."""

from __future__ import annotations

import pytest
import torch

from edgetune.compress.grid import UPPER, unit_of
from edgetune.compress.hessian import factorise, repaired_diagonal
from edgetune.compress.mask_rule import Mask, MaskPass
from edgetune.compress.masking import (
    AfterCompensation,
    AtOutput,
    Magnitude,
    NofM,
    Pruning,
    Sparsity,
    Unstructured,
)
from edgetune.compress.rounding import Round
from edgetune.compress.search import LeastError
from edgetune.compress.sweep import Section, sweep
from edgetune.core.quantised import MXFP4, NVFP4, Q3_K, Q4_0, BlockGrid

from .problems import damped, problem, relative_error


def swept(
    rule: Mask, weights: torch.Tensor, hessian: torch.Tensor, block: int, sections: tuple[int, ...] = ()
) -> tuple[torch.Tensor, MaskPass]:
    """Sweep with 1 % damping; (weights, the pass)."""
    counts = sections or (len(weights),)
    decide = rule.begin(
        tuple(Section(f"m{n}", rows) for n, rows in enumerate(counts)), weights, hessian.diagonal()
    )
    return sweep(weights, factorise(hessian).upper, decide, block), decide


def surgeon(weights: torch.Tensor, hessian: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """n of every m pruned, or with m = 0 a share 1/n of all; every column by an inverse of its own, float64."""
    w = weights.double().clone()
    h = damped(hessian, repaired_diagonal(hessian.diagonal()), 0.01).double()
    columns = w.shape[1]
    inverses = [torch.linalg.inv(h[j:, j:]) for j in range(columns)]
    left = torch.stack([inverse[0, 0] for inverse in inverses])
    gone = torch.zeros_like(w, dtype=torch.bool)
    if not m:
        worth = (w * w / left).flatten()
        gone.view(-1)[worth.argsort()[: round(worth.numel() / n)]] = True
    for j in range(columns):
        if m and j % m == 0:
            worth = w[:, j : j + m] ** 2 / left[j : j + m]
            gone[:, j : j + m] = False
            gone[:, j : j + m].scatter_(1, worth.argsort(1)[:, :n], True)
        error = w[:, j] * gone[:, j] / inverses[j][0, 0]
        w[:, j:] -= error[:, None] * inverses[j][0]
        w[gone[:, j], j] = 0.0
    return w


@pytest.mark.parametrize(
    ("sparsity", "n", "m"), [(NofM(2, 4), 2, 4), (NofM(4, 8), 4, 8), (Unstructured(0.5), 2, 0)]
)
def test_in_a_sweep_it_is_the_surgeon_that_inverts_for_every_column(
    sparsity: Sparsity, n: int, m: int
) -> None:
    weights, hessian = problem(6, 64, 2)
    found, _ = swept(Mask(Pruning(sparsity, AfterCompensation())), weights, hessian, 64)
    torch.testing.assert_close(found.double(), surgeon(weights, hessian, n, m), rtol=1e-3, atol=1e-4)


def test_every_matrix_of_a_stack_gives_up_its_own_share_in_every_block() -> None:
    weights, hessian = problem(24, 96, 1)
    weights[:8] *= 100
    found, _ = swept(Mask(Pruning(Unstructured(0.25), AfterCompensation())), weights, hessian, 32, (8, 16))
    for rows in (slice(0, 8), slice(8, 24)):
        for start in (0, 32, 64):
            part = found[rows, start : start + 32]
            assert int((part == 0).sum()) == part.numel() // 4


@pytest.mark.parametrize("block", [4, 12, 32, 128])
def test_n_of_m_holds_in_every_group_whatever_the_block(block: int) -> None:
    weights, hessian = problem(8, 72, 3)
    found, _ = swept(Mask(Pruning(NofM(2, 4), AfterCompensation())), weights, hessian, block)
    assert torch.equal((found == 0).reshape(8, 18, 4).sum(2), torch.full((8, 18), 2))


@pytest.mark.parametrize("worth", [AfterCompensation(), AtOutput(), Magnitude()])
def test_compensation_and_polish_and_swaps_each_lower_the_error(
    worth: AfterCompensation | AtOutput | Magnitude,
) -> None:
    weights, hessian = problem(32, 64, 4)
    full = damped(hessian, hessian.diagonal(), 0.01)
    pruning = Pruning(NofM(2, 4), worth)
    masked, _ = Mask(pruning).alone((Section("m", 32),), weights, hessian.diagonal())
    errors = [relative_error(weights, masked, hessian)]
    for rule in (Mask(pruning), Mask(pruning, polish=8), Mask(pruning, polish=8, swaps=8)):
        found, decide = swept(rule, weights, hessian, 64)
        refined = decide.refine(weights, full, 0)
        assert torch.equal(found, decide.found.T)
        assert torch.equal((refined == 0).reshape(32, 16, 4).sum(2), torch.full((32, 16), 2))
        errors.append(relative_error(weights, refined, hessian))
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.8 * errors[1]


def test_weights_of_inputs_never_seen_go_first() -> None:
    weights, hessian = problem(8, 32, 5)
    hessian[3], hessian[:, 3] = 0.0, 0.0
    weights[:, 3] = 10.0
    for rule in (
        Mask(Pruning(Unstructured(1 / 32), AfterCompensation())),
        Mask(Pruning(Unstructured(1 / 32), AtOutput())),
    ):
        found, _ = swept(rule, weights, hessian, 32)
        assert (found == 0).nonzero()[:, 1].tolist() == [3] * 8


@pytest.mark.parametrize("grid", [Q4_0, MXFP4, Q3_K])
@pytest.mark.parametrize("sparsity", [Unstructured(0.5), NofM(2, 4)])
def test_jointly_what_is_stored_is_what_was_chosen_and_what_went_stays_nothing(
    grid: BlockGrid, sparsity: Sparsity
) -> None:
    weights, hessian = problem(8, 256, 6)
    rule = Mask(Pruning(sparsity, AfterCompensation()), Round(grid, LeastError()))
    found, decide = swept(rule, weights, hessian, 256)
    stored = decide.stored(slice(None))
    assert stored is not None
    assert torch.equal(stored.dequantise(), found)
    assert not found.T[~decide.kept].any()
    assert int(decide.kept.sum()) == 8 * 128

    full = damped(hessian, hessian.diagonal(), 0.01)
    refined = decide.refine(weights, full, 2)
    assert torch.equal(decide.stored(slice(None)).dequantise(), refined)
    assert not refined.T[~decide.kept].any()
    before, after = ((((one - weights) @ full) * (one - weights)).sum(1) for one in (found, refined))
    assert bool((after <= before * (1 + 1e-5)).all())
    assert float(after.sum()) < 0.9 * float(before.sum())


@pytest.mark.parametrize("grid", [Q4_0, MXFP4, Q3_K])
@pytest.mark.parametrize("sparsity", [Unstructured(0.5), NofM(2, 4)])
def test_a_polished_mask_goes_on_the_grid_last_and_ends_lower(grid: BlockGrid, sparsity: Sparsity) -> None:
    weights, hessian = problem(8, 256, 6)
    full, errors = damped(hessian, hessian.diagonal(), 0.01), []
    for steps in (0, 6):
        pruning = Pruning(sparsity, AfterCompensation())
        rule = Mask(pruning, Round(grid, LeastError()), swaps=steps, polish=steps)
        _, decide = swept(rule, weights, hessian, 256)
        refined = decide.refine(weights, full, 2)
        stored = decide.stored(slice(2, 5))
        assert stored is not None
        assert torch.equal(stored.dequantise(), refined[2:5])
        assert int((refined == 0).sum()) >= 8 * 128
        errors.append(relative_error(weights, refined, hessian))
    assert errors[1] < 0.95 * errors[0]


def test_what_is_rounded_last_is_in_the_unit_of_the_stage() -> None:
    """Of NVFP4 a stage solves w / unit: a polish that lifts a weight over a power of two must not begin another."""
    weights, hessian = problem(8, 256, 6)
    weights *= 1.01 * 12 * UPPER / float(weights.abs().max())
    assert unit_of(weights, NVFP4) != unit_of(weights / 1.02, NVFP4)
    pruning = Pruning(Unstructured(0.1), AfterCompensation())
    _, decide = swept(Mask(pruning, Round(NVFP4, LeastError()), polish=4), weights, hessian, 256)
    refined = decide.refine(weights, damped(hessian, hessian.diagonal(), 0.01), 1)
    assert relative_error(weights, refined, hessian) < 0.02


def test_joint_is_better_than_rounding_what_was_pruned() -> None:
    weights, hessian = problem(48, 256, 7)
    pruning, coarse = Pruning(Unstructured(0.2), AfterCompensation()), Round(Q3_K, LeastError())
    pruned, _ = swept(Mask(pruning), weights, hessian, 256)
    rounded, _ = coarse.alone((Section("m", 48),), pruned, hessian.diagonal())
    together, _ = swept(Mask(pruning, coarse), weights, hessian, 256)
    assert relative_error(weights, together, hessian) < 0.9 * relative_error(weights, rounded, hessian)


def test_alone_the_mask_is_that_of_wanda_and_kept_weights_are_untouched() -> None:
    weights, hessian = problem(6, 32, 8)
    worth = weights.abs() * hessian.diagonal().sqrt()
    expected = weights.clone()
    expected.scatter_(1, worth.argsort(1)[:, :16], 0.0)
    rule = Mask(Pruning(Unstructured(0.5), AtOutput()))
    found, stored = rule.alone((Section("m", 6),), weights, hessian.diagonal())
    assert stored is None
    assert torch.equal(found, expected)
    same, _ = swept(rule, weights, torch.diag(hessian.diagonal()), 32)
    torch.testing.assert_close(same, expected)
