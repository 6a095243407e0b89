from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.compress.grid import AbsMax, ScaleFit, nearest_codes
from edgetune.compress.hessian import factorise, uncoupled
from edgetune.compress.rounding import Round, RoundPass, round_to_nearest
from edgetune.compress.search import LeastError
from edgetune.compress.sweep import ColumnPass, ColumnRule, Section, Window, sweep
from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.quantised import Q4_0, Q8_0, BlockGrid, QuantisedMatrix

from .problems import problem, relative_error


def begin(weights: torch.Tensor, grid: BlockGrid = Q4_0, fit: ScaleFit | None = None) -> RoundPass:
    rule = Round(grid, fit or LeastError())
    return rule.begin((Section("w", len(weights)),), weights, torch.ones_like(weights[0]))


def brute_force(
    weights: torch.Tensor, hessian: torch.Tensor, damping: float, grid: BlockGrid, fit: ScaleFit
) -> torch.Tensor:
    """Optimal Brain Quantization in a fixed order: invert the Hessian of the open columns anew at every step."""
    columns = len(hessian)
    h = hessian.double() + damping * hessian.double().diagonal().mean() * torch.eye(columns).double()
    w, done = weights.double().clone(), torch.zeros_like(weights, dtype=torch.float64)
    costs = torch.stack([1 / torch.linalg.inv(h[j:, j:])[0, 0] for j in range(columns)])
    for j in range(columns):
        if j % 32 == 0:
            wanted, _ = fit(w[:, j : j + 32], costs[j : j + 32], grid)
            scale = wanted.half().double()
        inverse = torch.linalg.inv(h[j:, j:])
        done[:, j] = nearest_codes(w[:, j, None], scale, None, grid)[:, 0] * scale
        error = (w[:, j] - done[:, j]) / inverse[0, 0]
        w[:, j:] -= torch.outer(error, inverse[0])
    return done


@pytest.mark.parametrize("block", [32, 64, 96, 128, 256])
@pytest.mark.parametrize(("grid", "fit"), [(Q4_0, AbsMax()), (Q4_0, LeastError()), (Q8_0, AbsMax())])
def test_sweep_equals_brute_force_obq(block: int, grid: BlockGrid, fit: ScaleFit) -> None:
    weights, hessian = problem(5, 96)
    weights = weights.double()
    mean = hessian.diagonal().double().mean()
    damped = hessian.double() + 0.01 * mean * torch.eye(96, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    solved = sweep(weights, upper, begin(weights, grid, fit), block)
    torch.testing.assert_close(solved, brute_force(weights, hessian, 0.01, grid, fit), rtol=1e-9, atol=1e-9)


def test_single_precision_sweep_reaches_the_double_precision_error() -> None:
    weights, hessian = problem(24, 96)
    single = sweep(weights, factorise(hessian, 0.01).upper, begin(weights), 32)
    exact = brute_force(weights, hessian, 0.01, Q4_0, LeastError())
    assert relative_error(weights, single, hessian) == pytest.approx(
        relative_error(weights.double(), exact, hessian), rel=0.02
    )


@pytest.mark.parametrize("grid", [Q4_0, Q8_0])
@pytest.mark.parametrize("fit", [AbsMax(), LeastError()])
@pytest.mark.parametrize("diagonal", ["identity", "random"])
def test_with_a_diagonal_hessian_the_sweep_is_rounding_to_nearest(
    grid: BlockGrid, fit: ScaleFit, diagonal: str
) -> None:
    weights, _ = problem(16, 160)
    importance = torch.ones(160)
    if diagonal == "random":
        # Powers of four have exact square roots, so both roads weight alike to the last bit.
        importance = 4.0 ** torch.randint(-3, 4, (160,), generator=torch.Generator().manual_seed(2))
    rule = begin(weights, grid, fit)
    solved = sweep(weights, uncoupled(importance).upper, rule, 64)
    rounded = round_to_nearest(weights, grid, fit, importance=importance)
    assert torch.equal(solved, rounded.dequantise())
    assert torch.equal(rule.stored(slice(0, 16)).codes, rounded.codes)


@pytest.mark.parametrize("grid", [Q4_0, Q8_0])
def test_what_is_stored_is_what_was_solved_bit_for_bit(grid: BlockGrid) -> None:
    weights, hessian = problem(40, 192)
    rule = begin(weights, grid)
    solved = sweep(weights, factorise(hessian).upper, rule, 64)
    assert torch.equal(rule.stored(slice(0, 40)).dequantise(), solved)
    assert torch.equal(rule.stored(slice(7, 20)).dequantise(), solved[7:20])


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(8, 40),
    groups=st.integers(1, 5),
    tokens=st.sampled_from([20, 100, 1000]),
    fit=st.sampled_from([AbsMax(), LeastError()]),
)
def test_compensation_never_loses_to_rounding_on_correlated_inputs(
    seed: int, rows: int, groups: int, tokens: int, fit: ScaleFit
) -> None:
    weights, hessian = problem(rows, 32 * groups, seed, tokens)
    rule = begin(weights, Q4_0, fit)
    solved = sweep(weights, factorise(hessian).upper, rule, 64)
    rounded = round_to_nearest(weights, Q4_0, fit, importance=hessian.diagonal()).dequantise()
    assert relative_error(weights, solved, hessian) <= relative_error(weights, rounded, hessian)


def test_stacked_matrices_are_solved_as_if_alone() -> None:
    weights, hessian = problem(24, 64)
    upper = factorise(hessian).upper
    together = Round(Q4_0, LeastError()).begin((Section("q", 16), Section("k", 8)), weights, torch.ones(64))
    sweep(weights, upper, together)
    for rows in (slice(0, 16), slice(16, 24)):
        alone = begin(weights[rows])
        sweep(weights[rows], upper, alone)
        assert torch.equal(together.stored(rows).codes, alone.stored(slice(0, 24)).codes)


def test_a_constant_zero_row_and_dead_columns_stay_on_the_grid() -> None:
    weights, hessian = problem(6, 96)
    weights[2] = 0
    dead = torch.tensor([0, 33, 34, 95])
    hessian[dead] = 0
    hessian[:, dead] = 0
    solved = sweep(weights, factorise(hessian).upper, begin(weights))
    assert solved[2].count_nonzero() == 0
    # Nothing can make up for a dead column and it makes up for nothing, but it is rounded, not erased.
    assert (solved[:, dead] - weights[:, dead]).abs().max() < 0.6
    assert solved[0, dead].count_nonzero()


def test_the_weights_given_are_left_alone() -> None:
    weights, hessian = problem(4, 64)
    before = weights.clone()
    sweep(weights, factorise(hessian).upper, begin(weights), 32)
    assert torch.equal(weights, before)


def test_overflow_in_a_stack_names_the_matrix_concerned() -> None:
    weights, _ = problem(8, 32)
    weights[6, 0] = 1e7
    rule = Round(Q4_0, LeastError()).begin((Section("a.q", 5), Section("a.k", 3)), weights, torch.ones(32))
    with pytest.raises(ModelError, match=r"a\.k: row 1"):
        sweep(weights, torch.eye(32), rule)


def test_a_block_of_no_columns_is_refused() -> None:
    weights, _ = problem(2, 32)
    with pytest.raises(ConfigError, match="at least 1 column"):
        sweep(weights, torch.eye(32), begin(weights), 0)


class Keep:
    """A rule that changes nothing, and one (`drop`) that prunes the cheapest half of the window: no grid at all."""

    span = 1
    whole = False

    def __init__(self, drop: bool) -> None:
        self.drop = drop
        self.mask = torch.empty(0)

    def begin(self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor) -> Keep:
        return self

    def alone(
        self, sections: tuple[Section, ...], weights: torch.Tensor, importance: torch.Tensor
    ) -> tuple[torch.Tensor, None]:
        return weights, None

    def refine(self, target: torch.Tensor, hessian: torch.Tensor, passes: int) -> torch.Tensor:
        return target

    def column(self, window: Window, j: int) -> torch.Tensor:
        if j == 0:
            scores = (window.columns / window.pivots) ** 2
            self.mask = scores > scores.flatten().median() if self.drop else torch.ones_like(scores).bool()
        return window.columns[:, j] * self.mask[:, j]

    def stored(self, rows: slice) -> QuantisedMatrix | None:
        return None


def test_the_sweep_knows_nothing_of_quantisation() -> None:
    weights, hessian = problem(16, 96)
    upper = factorise(hessian).upper
    keep: ColumnRule = Keep(drop=False)
    none: ColumnPass = keep.begin((Section("w", 16),), weights, torch.ones(96))
    assert torch.equal(sweep(weights, upper, none, 32), weights)
    pruned = sweep(weights, upper, Keep(drop=True), 32)
    assert pruned.count_nonzero() == weights.numel() // 2
    flat = torch.where(pruned == 0, pruned, weights)
    assert relative_error(weights, pruned, hessian) < relative_error(weights, flat, hessian)
