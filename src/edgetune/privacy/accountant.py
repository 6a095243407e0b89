"""The privacy accountant: dp-accounting's Renyi divergences of the sampled Gaussian mechanism."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgetune.core.errors import ConfigError, MissingExtraError
from edgetune.core.protected import LARGEST

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
"""Orders of the divergence: whole ones have a finite sum, where others have series that libraries cut differently.
Orders below 2 would matter for an epsilon above ten."""
CLOSE = 1e-4
"""Relative distance of the noise that is found from the least that would do."""


@dataclass(frozen=True, slots=True)
class Releases:
    """What somebody hears of one record, or of one device.

    Args:
        rate: q, the probability that it takes part in a release, in (0, 1]; independent of all others.
        count: releases, at least 0.
    """

    rate: float
    count: int


def spent(noise_multiplier: float, releases: Iterable[Releases], delta: float) -> float:
    """Return the epsilon of whoever is told most of.

        epsilon = min_a  T R_a(q, sigma) + log(1 - 1 / a) - log(a delta) / (a - 1)

    R_a: Renyi divergence of order a of one release, T of them; neighbours differ by one contributor more or less.

    Args:
        noise_multiplier: sigma, standard deviation of the noise of a sum over the bound of a contribution.
        releases: of every record or device.
        delta: in (0, 1).

    Returns:
        At least 0; infinite without noise.

    Raises:
        MissingExtraError: if dp-accounting is not installed.
    Cost: about 10 ms a different pair of rate and count that no other pair exceeds.
    Source: Mironov et al. 2019, arXiv:1908.10530; Balle et al. 2020, arXiv:1905.09982 (from Renyi to epsilon).
    """
    told = _greatest(one for one in releases if one.count)
    if not told:
        return 0.0
    if not noise_multiplier:
        return math.inf
    accounting = _library()
    found = []
    for one in told:
        accountant = accounting.rdp.RdpAccountant(ORDERS)
        release = accounting.PoissonSampledDpEvent(one.rate, accounting.GaussianDpEvent(noise_multiplier))
        accountant.compose(release, one.count)
        found.append(float(accountant.get_epsilon(delta)))
    return max(found)


def noise_for(epsilon: float, releases: Iterable[Releases], delta: float) -> float:
    """Return a noise multiplier with which releases spend at most `epsilon`, the least up to one part in 10,000.

    Args:
        epsilon: above 0.
        releases, delta: as `spent`.

    Raises:
        ConfigError: if no noise up to `core.protected.LARGEST` does.
        MissingExtraError: if dp-accounting is not installed.
    Cost: some 20 times that of `spent`.
    """
    told = _greatest(one for one in releases if one.count)
    low, high = 0.0, 1.0
    while spent(high, told, delta) > epsilon:
        low, high = high, 2 * high
        if high > LARGEST:
            raise ConfigError(
                f"no noise keeps {max(one.count for one in told):,} releases within epsilon = {epsilon:g} at delta = "
                f"{delta:g}",
                hint="fewer rounds or local steps, a smaller batch, or a larger epsilon",
            )
    while high - low > CLOSE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle, told, delta) > epsilon else (low, middle)
    return high


def _greatest(releases: Iterable[Releases]) -> list[Releases]:
    """Return the releases that no others exceed in both numbers: epsilon grows with each."""
    kept = list[Releases]()
    for one in sorted(set(releases), key=lambda one: (-one.rate, -one.count)):
        if not kept or one.count > kept[-1].count:
            kept.append(one)
    return kept


def _library() -> Any:
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ImportError as error:
        raise MissingExtraError("dp-accounting", "privacy", "saying what a private method spends") from error
    return dp_accounting
