from __future__ import annotations

import pytest
import torch

from edgetune.compress.hessian import (
    TILE,
    WIDE,
    Hessian,
    damped,
    factorise,
    repaired_diagonal,
    uncoupled,
)
from edgetune.core.errors import ModelError

from .problems import problem


def test_accumulating_in_uneven_pieces_is_the_mean_of_outer_products() -> None:
    inputs = torch.randn(101, 17, generator=torch.Generator().manual_seed(0))
    hessian = Hessian(17)
    for piece in inputs.split([1, 0, 40, 60]):
        hessian.add(piece)
    brute = sum(2 * torch.outer(x, x) for x in inputs.double()) / len(inputs)
    assert hessian.tokens == 101
    torch.testing.assert_close(hessian.matrix.double(), brute, rtol=1e-5, atol=1e-6)


def test_half_precision_inputs_accumulate_in_float32() -> None:
    hessian = Hessian(4)
    hessian.add(torch.full((1000, 4), 200.0, dtype=torch.float16))
    torch.testing.assert_close(hessian.matrix, torch.full((4, 4), 80000.0))


def test_upper_factor_squares_to_the_damped_inverse() -> None:
    _, hessian = problem(1, 64)
    factor = factorise(hessian, 0.01)
    damped = hessian.double() + 0.01 * hessian.diagonal().mean().double() * torch.eye(64, dtype=torch.float64)
    upper = factor.upper.double()
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, torch.linalg.inv(damped), rtol=1e-3, atol=1e-4)
    # The textbook road: Cholesky of the explicit inverse.
    torch.testing.assert_close(
        upper, torch.linalg.cholesky(torch.linalg.inv(damped), upper=True), rtol=1e-3, atol=1e-4
    )
    assert (factor.damping, factor.fallback) == (0.01, False)


def test_dead_columns_get_the_mean_of_the_live_ones() -> None:
    diagonal = torch.tensor([0.0, 2.0, 4.0, 0.0])
    assert repaired_diagonal(diagonal).tolist() == [3.0, 2.0, 4.0, 3.0]
    assert repaired_diagonal(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    factor = factorise(torch.diag(diagonal), 0.01)
    torch.testing.assert_close(factor.upper.diagonal() ** -2, torch.tensor([3.03, 2.03, 4.03, 3.03]))
    assert not factor.fallback


def test_fewer_tokens_than_columns_is_damped_not_refused() -> None:
    hessian = Hessian(64)
    hessian.add(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
    factor = factorise(hessian.matrix)
    assert not factor.fallback
    assert factor.damping == 0.01
    assert torch.isfinite(factor.upper).all()


def test_nothing_calibrated_factorises_as_the_identity() -> None:
    factor = factorise(torch.zeros(32, 32), 0.01)
    torch.testing.assert_close(factor.upper, torch.eye(32) * 1.01**-0.5)


@pytest.mark.parametrize(("lowest", "damping"), [(-0.005, 0.01), (-0.05, 0.1), (-0.5, 1.0)])
def test_damping_rises_tenfold_until_the_factor_exists(lowest: float, damping: float) -> None:
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    values = torch.ones(32)
    values[0] = lowest
    factor = factorise(rotation @ torch.diag(values) @ rotation.T, 0.01)
    assert factor.damping == pytest.approx(damping)
    assert not factor.fallback


def test_a_matrix_no_damping_repairs_is_reported_and_uncoupled() -> None:
    indefinite = torch.ones(32, 32) * 9.0
    indefinite.diagonal().fill_(1.0)
    factor = factorise(indefinite)
    assert factor.fallback
    assert factor.damping == 0.0
    assert torch.equal(factor.upper, uncoupled(torch.ones(32)).upper)


def test_ill_conditioned_hessians_are_factorised_in_double_precision() -> None:
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    hessian = rotation @ torch.diag(torch.logspace(0, -9, 64)) @ rotation.T
    hessian = (hessian + hessian.T) / 2
    factor = factorise(hessian, 1e-6)
    damped = hessian.clone()
    damped.diagonal().copy_(hessian.diagonal() + 1e-6 * hessian.diagonal().mean())
    exact = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
    assert factor.damping == 1e-6
    assert float((factor.upper - exact).norm() / exact.norm()) < 1e-5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_inputs_are_refused_by_name(bad: float) -> None:
    inputs = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    inputs[3, 5] = bad
    hessian = Hessian(32)
    hessian.add(inputs)
    with pytest.raises(ModelError, match=r"layers\.0\.q_proj.*NaN or infinity"):
        factorise(hessian.matrix, name="layers.0.q_proj")


@pytest.mark.parametrize("columns", [32, WIDE])
def test_the_drift_is_that_of_the_dense_inputs_to_two_digits_and_none_where_they_are_alike(
    columns: int,
) -> None:
    luck = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, columns, generator=luck)
    dense = inputs + 0.1 * torch.randn(300, columns, generator=luck)
    seen, alike = Hessian(columns, dense=True), Hessian(columns, dense=True)
    for x, y in zip(inputs.split(100), dense.split(100), strict=True):
        seen.add(x, y)
        alike.add(x, x.clone())
    exact = 2 / 300 * (dense - inputs).double().T @ inputs.double()
    assert seen.drift is not None
    assert float((seen.drift - exact).norm() / exact.norm()) < (0.01 if columns == WIDE else 1e-6)
    assert alike.drift is not None
    assert not alike.drift.any()


@pytest.mark.parametrize("columns", [TILE + 1, 3 * TILE - 5])
def test_wide_hessians_are_factorised_by_halves(columns: int) -> None:
    _, hessian = problem(1, columns, tokens=columns // 4)
    before = hessian.clone()
    factor = factorise(hessian, 0.01)
    full = hessian.double()
    full.diagonal().add_(0.01 * hessian.diagonal().mean())
    upper = factor.upper.double()
    assert torch.equal(hessian, before)
    assert torch.equal(upper, upper.triu())
    residual = upper.T @ upper @ full - torch.eye(columns)
    assert float(residual.norm()) < 1e-2


def test_a_hessian_is_damped_for_a_while() -> None:
    _, hessian = problem(1, 32)
    before = hessian.clone()
    with damped(hessian, before.diagonal() + 1, 0.5):
        wanted = before.diagonal() + 1 + 0.5 * (before.diagonal() + 1).mean()
        torch.testing.assert_close(hessian.diagonal(), wanted)
        assert torch.equal(hessian.triu(1), before.triu(1))
    assert torch.equal(hessian, before)
