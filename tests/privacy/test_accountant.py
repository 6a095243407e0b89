"""The accountant against a closed form, golden numbers of a second library, and its own inverse."""

from __future__ import annotations

import math
import sys

import pytest

from edgetune.core.errors import ConfigError, MissingExtraError
from edgetune.privacy import Releases, noise_for, spent
from edgetune.privacy.accountant import ORDERS

DELTA = 1e-5


@pytest.fixture
def library() -> None:
    pytest.importorskip("dp_accounting", reason="the extra `privacy` is not installed")


def by_hand(sigma: float, rate: float, count: int, delta: float) -> float:
    """Return epsilon by the finite sum for whole orders.

    R_a = log( sum_k binom(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 sigma^2)) ) / (a - 1)

    Source: Mironov et al. 2019, arXiv:1908.10530, section 3.3.
    """
    found = []
    for a in ORDERS:
        if rate == 1:
            divergence = a / (2 * sigma**2)
        else:
            logs = [
                math.lgamma(a + 1) - math.lgamma(k + 1) - math.lgamma(a - k + 1)
                + (a - k) * math.log1p(-rate) + k * math.log(rate) + (k * k - k) / (2 * sigma**2)
                for k in range(a + 1)
            ]  # fmt: skip
            most = max(logs)
            divergence = (most + math.log(math.fsum(math.exp(one - most) for one in logs))) / (a - 1)
        found.append(count * divergence + math.log1p(-1 / a) - math.log(delta * a) / (a - 1))
    return max(0.0, min(found))


CASES = [
    (1.0, 0.01, 1000, 2.107753075451561),
    (0.8, 0.2, 50, 17.150772935042507),
    (2.0, 1.0, 100, 35.126631103850336),
    (4.0, 0.0416, 10_000, 5.06501692843718),
    (1.5, 0.1, 1, 0.9494090551657682),
    (8.0, 0.05, 4000, 1.6857316367636073),
]
"""Noise, rate, releases, and epsilon by opacus 1.6.0 (compute_rdp and get_privacy_spent over `ORDERS`)."""


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("sigma", "rate", "count", "other"), CASES)
def test_epsilon_is_that_of_a_second_library_and_of_the_closed_form(
    sigma: float, rate: float, count: int, other: float
) -> None:
    found = spent(sigma, [Releases(rate, count)], DELTA)
    assert found == pytest.approx(other, rel=0, abs=1e-6)
    assert found == pytest.approx(by_hand(sigma, rate, count, DELTA), rel=0, abs=1e-6)


@pytest.mark.usefixtures("library")
def test_whoever_is_told_most_of_counts() -> None:
    few, many, always = Releases(0.01, 2000), Releases(0.05, 400), Releases(0.05, 20)
    alone = [spent(1.2, [one], DELTA) for one in (few, many, always)]
    assert spent(1.2, [few, many, always, Releases(1.0, 0)], DELTA) == max(alone)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("epsilon", [0.5, 2.0, 6.0])
def test_the_noise_for_a_target_is_the_least_that_meets_it(epsilon: float) -> None:
    told = [Releases(0.0416, 1000), Releases(0.02, 3000)]
    noise = noise_for(epsilon, told, DELTA)
    assert spent(noise, told, DELTA) <= epsilon < spent(noise * (1 - 2e-4), told, DELTA)


@pytest.mark.usefixtures("library")
def test_a_target_that_no_noise_meets_is_refused() -> None:
    with pytest.raises(ConfigError, match="no noise keeps 1,000,000 releases within epsilon = 1e-05"):
        noise_for(1e-5, [Releases(1.0, 1_000_000)], 1e-12)


def test_without_noise_or_without_releases_nothing_has_to_be_counted() -> None:
    assert spent(0.0, [Releases(0.1, 5)], DELTA) == math.inf
    assert spent(1.0, [Releases(0.1, 0)], DELTA) == 0.0


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtraError, match=r"edgetune\[privacy\]"):
        spent(1.0, [Releases(0.1, 5)], DELTA)
