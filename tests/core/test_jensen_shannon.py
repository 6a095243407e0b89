"""The generalised Jensen-Shannon divergence against closed forms, its ends, and a brute-force sum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from edgetune.core.errors import ConfigError
from edgetune.core.jensen_shannon import JensenShannon

chances = st.floats(0.01, 0.99)


def _coin(p: float) -> torch.Tensor:
    return torch.tensor([[p, 1 - p]], dtype=torch.float64).log()


def _random(seed: int, outcomes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, outcomes, generator=draw, dtype=torch.float64).mul(2).log_softmax(-1)
    return student, teacher


def _kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


@given(chances, chances)
def test_ends_are_forward_and_reverse_divergences_of_coins(p: float, q: float) -> None:
    assert JensenShannon(0.0)(_coin(q), _coin(p)).item() == pytest.approx(_kl(p, q), abs=1e-12)
    assert JensenShannon(1.0)(_coin(q), _coin(p)).item() == pytest.approx(_kl(q, p), abs=1e-12)


@given(chances, chances, st.floats(0.05, 0.95))
def test_between_the_ends_it_is_the_sum_of_the_definition(p: float, q: float, beta: float) -> None:
    expected = 0.0
    for left, right in ((p, q), (1 - p, 1 - q)):
        mixed = beta * left + (1 - beta) * right
        expected += beta * left * math.log(left / mixed) + (1 - beta) * right * math.log(right / mixed)
    assert JensenShannon(beta)(_coin(q), _coin(p)).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_normalised_it_tends_to_both_ends_and_by_itself_to_nothing(end: float) -> None:
    student, teacher = _random(0)
    wanted = JensenShannon(end)(student, teacher)
    assert torch.equal(JensenShannon(end, normalise=True)(student, teacher), wanted)
    off = list[float]()
    for step in (1e-3, 1e-4, 1e-5):
        near = abs(end - step)
        found = JensenShannon(near, normalise=True)(student, teacher)
        off.append(float(((found - wanted) / wanted).abs().max()))
        assert float((JensenShannon(near)(student, teacher) / wanted).max()) < 1.2 * step
    assert off[0] > 5 * off[1] > 25 * off[2]
    assert off[2] < 1e-2


def test_halfway_it_is_symmetric_and_at_most_one_bit() -> None:
    student, teacher = _random(1)
    found = JensenShannon(0.5)(student, teacher)
    assert torch.allclose(found, JensenShannon(0.5)(teacher, student))
    apart = (
        torch.tensor([[0.0, -800.0]], dtype=torch.float64),
        torch.tensor([[-800.0, 0.0]], dtype=torch.float64),
    )
    assert JensenShannon(0.5)(*apart).item() == pytest.approx(math.log(2))
    assert bool((found < math.log(2)).all())


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_equal_distributions_are_no_distance_apart(beta: float) -> None:
    student, _ = _random(2)
    assert torch.allclose(JensenShannon(beta)(student, student), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_its_gradient_is_that_of_finite_differences(beta: float) -> None:
    logits = torch.randn(
        3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3), requires_grad=True
    )
    _, teacher = _random(4, 6)
    kind = JensenShannon(beta, normalise=True)
    assert torch.autograd.gradcheck(lambda one: kind(one.log_softmax(-1), teacher[:3]), (logits,))


def test_many_outcomes_agree_with_the_library() -> None:
    student, teacher = _random(5, 50)
    expected = kl_divergence(Categorical(logits=teacher), Categorical(logits=student))
    assert torch.allclose(JensenShannon(0.0)(student, teacher), expected)


def test_beta_out_of_range_is_refused() -> None:
    for beta in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="between 0"):
            JensenShannon(beta)
