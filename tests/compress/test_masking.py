"""Which weights go, against sorting by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.compress.masking import (
    AfterCompensation,
    AtOutput,
    Magnitude,
    NofM,
    Unstructured,
    least,
    sparsity_named,
)
from edgetune.core.errors import ConfigError


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    share=st.floats(0, 1),
    rows=st.integers(1, 5),
    columns=st.integers(1, 40),
    levels=st.sampled_from([2, 1000]),
)
def test_exactly_the_asked_number_goes_the_least_and_of_equals_the_first(
    share: float, rows: int, columns: int, levels: int
) -> None:
    luck = torch.Generator().manual_seed(rows * columns)
    worth = torch.randint(levels, (rows, columns), generator=luck).float()
    gone = Unstructured(share).removed(worth, by_row=False)
    order = sorted(range(worth.numel()), key=lambda i: (float(worth.flatten()[i]), i))
    expected = set(order[: round(share * worth.numel())])
    assert set(gone.flatten().nonzero()[:, 0].tolist()) == expected


def test_by_row_every_row_gives_up_the_same_number() -> None:
    worth = torch.arange(24.0).reshape(4, 6).flip(0)
    assert Unstructured(0.5).removed(worth, by_row=True).sum(1).tolist() == [3, 3, 3, 3]
    assert Unstructured(0.5).removed(worth, by_row=False).sum(1).tolist() == [0, 0, 6, 6]


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 12), (1 / 3, 4), (0.999, 12)])
def test_the_ends_of_the_range_are_none_and_all(share: float, count: int) -> None:
    gone = Unstructured(share).removed(torch.rand(3, 4), by_row=False)
    assert int(gone.sum()) == count


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 2), (31, 32)])
def test_every_group_of_m_loses_its_n_least(n: int, m: int) -> None:
    worth = torch.rand(3, 64, generator=torch.Generator().manual_seed(n))
    gone = NofM(n, m).removed(worth, by_row=False)
    for row in range(3):
        for start in range(0, 64, m):
            group = worth[row, start : start + m]
            assert set(gone[row, start : start + m].nonzero()[:, 0].tolist()) == set(
                group.argsort()[:n].tolist()
            )


def test_nothing_and_everything_of_a_row() -> None:
    assert not least(torch.ones(2, 3), 0).any()
    assert least(torch.ones(2, 3), 3).all()
    assert least(torch.tensor([[1.0, 0, 1, 1]]), 2).tolist() == [[True, True, False, False]]


def test_what_a_weight_is_worth_is_the_error_of_setting_it_to_nothing() -> None:
    """The least error over all later columns by least squares, and the error at the output with none moved."""
    luck = torch.Generator().manual_seed(3)
    inputs = torch.randn(50, 6, generator=luck, dtype=torch.float64)
    hessian, w = inputs.T @ inputs, torch.randn(1, 6, generator=luck, dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    after = AfterCompensation()(w, upper.diagonal(), hessian.diagonal())[0]
    plain = AtOutput()(w, upper.diagonal(), hessian.diagonal())[0]
    for j in range(6):
        wanted = inputs[:, j] * w[0, j]  # what is missing at the output; columns after j may make up for it
        fit = (
            torch.linalg.lstsq(inputs[:, j + 1 :], wanted[:, None]).solution
            if j < 5
            else torch.zeros(0, 1).double()
        )
        remaining = (wanted - (inputs[:, j + 1 :] @ fit)[:, 0]).square().sum()
        torch.testing.assert_close(after[j], remaining)
        torch.testing.assert_close(plain[j], wanted.square().sum())
    assert torch.equal(Magnitude()(w, upper.diagonal(), hessian.diagonal()), w * w)


def test_a_user_names_a_share_or_a_pattern() -> None:
    assert sparsity_named("0.5") == Unstructured(0.5)
    assert sparsity_named("2:4") == NofM(2, 4)
    assert [sparsity_named(text).name for text in ("0.25", "4:8")] == ["0.25", "4:8"]


@pytest.mark.parametrize("text", ["half", "2:", ":4", "1.5", "-0.1", "nan", "2:6", "4:4", "0:4", "2:4:8", ""])
def test_anything_else_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match=r"0\.5|2:4"):
        sparsity_named(text)
