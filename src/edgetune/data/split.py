"""Who holds which records: splits of a data set over devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from edgetune.core.errors import ConfigError, DataError
from edgetune.data.streams import stream

Indices = tuple[int, ...]
Shares = tuple[Indices, ...]
"""Per device the ascending positions of its records; disjoint, and together all of them."""

TRIES = 10_000
"""Draws of the device sizes before a split is declared infeasible."""


class Split(Protocol):
    """Any split: a frozen value called with the category of each record."""

    name: ClassVar[str]

    def __call__(self, categories: Sequence[str], devices: int, *, seed: int, minimum: int) -> Shares:
        """Return the positions each device holds."""


@dataclass(frozen=True, slots=True)
class Iid:
    """A random permutation cut into equal parts (sizes differ by at most one).

    Args:
        categories: the category of each record; only their number matters.
        devices: number of devices, at least 1.
        seed: not negative.
        minimum: the least number of records a device may hold.

    Returns:
        Record positions per device: disjoint, covering all, ascending.

    Raises:
        ConfigError: devices, seed or minimum out of range.
        DataError: fewer than `devices * minimum` records.
    """

    name: ClassVar[str] = "iid"

    def __call__(self, categories: Sequence[str], devices: int, *, seed: int, minimum: int) -> Shares:
        """Return the positions each device holds."""
        _check(len(categories), devices, minimum)
        order = stream(seed, "split/iid").permutation(len(categories))
        return tuple(_ascending(part) for part in np.array_split(order, devices))


@dataclass(frozen=True, slots=True)
class DirichletByCategory:
    """Label skew: each category is spread over the devices in Dirichlet proportions.

        for each category c:  p ~ Dir(alpha 1_N);  p_i = 0 where device i already holds >= n / N;
        p := p / sum(p);  cut the shuffled records of c at floor(cumsum(p) n_c)
        repeat the whole draw until min_i n_i >= minimum

    Args:
        alpha: concentration, above 0; 0.5 is strongly skewed, 5 nearly even.

    Raises:
        ConfigError: alpha, devices, seed or minimum out of range.
        DataError: too few records, or no draw in `TRIES` reaches the minimum.
    Cost: O(categories * devices) a try; records are only shuffled for the accepted draw.
    Source: FedKSeed `partition_idx_labeldir` (arXiv 2312.06353) and Shepherd `client_data_allocation`
        (arXiv 2305.05644). Categories are visited in alphabetical order.
    """

    alpha: float
    name: ClassVar[str] = "dirichlet-category"

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def __call__(self, categories: Sequence[str], devices: int, *, seed: int, minimum: int) -> Shares:
        """Return the positions each device holds."""
        total = len(categories)
        _check(total, devices, minimum)
        labels = np.asarray(categories, dtype=object)
        members = [np.flatnonzero(labels == label) for label in sorted(set(categories))]
        sizes = [len(indices) for indices in members]
        draws = stream(seed, "split/dirichlet-category/sizes")
        counts = _redraw(lambda: self._counts(draws, sizes, devices), minimum, f"alpha = {self.alpha:g}")
        shuffles = stream(seed, "split/dirichlet-category/records")
        parts: list[list[np.ndarray]] = [[] for _ in range(devices)]
        for indices, row in zip(members, counts, strict=True):
            cuts = np.split(shuffles.permutation(indices), np.cumsum(row)[:-1])
            for device, cut in enumerate(cuts):
                parts[device].append(cut)
        return tuple(_ascending(np.concatenate(part)) for part in parts)

    def _counts(self, draws: np.random.Generator, sizes: Sequence[int], devices: int) -> np.ndarray | None:
        """Draw int64 [categories, devices] sizes, or None where all proportions of the open devices underflowed."""
        held = np.zeros(devices, dtype=np.int64)
        rows = []
        for size in sizes:
            shares = draws.dirichlet(np.full(devices, self.alpha)) * (held < sum(sizes) / devices)
            mass = shares.sum()
            if not mass > 0:
                return None
            rows.append(_cut(shares / mass, size))
            held += rows[-1]
        return np.stack(rows)


@dataclass(frozen=True, slots=True)
class DirichletQuantity:
    """Quantity skew: every device draws from the same records, but device sizes are Dirichlet.

        p ~ Dir(alpha 1_N);  cut a random permutation at floor(cumsum(p) n);  repeat until min_i n_i >= minimum

    Args:
        alpha: concentration, above 0; small values give a few devices nearly everything.

    Raises:
        ConfigError: alpha, devices, seed or minimum out of range.
        DataError: too few records, or no draw in `TRIES` reaches the minimum.
    Source: the quantity skew of Li et al., "Federated learning on non-IID data silos" (arXiv 2102.02079).
    """

    alpha: float
    name: ClassVar[str] = "dirichlet-quantity"

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def __call__(self, categories: Sequence[str], devices: int, *, seed: int, minimum: int) -> Shares:
        """Return the positions each device holds."""
        total = len(categories)
        _check(total, devices, minimum)
        draws = stream(seed, "split/dirichlet-quantity/sizes")
        counts = _redraw(
            lambda: _cut(draws.dirichlet(np.full(devices, self.alpha)), total)[None],
            minimum,
            f"alpha = {self.alpha:g}",
        )
        order = stream(seed, "split/dirichlet-quantity/records").permutation(total)
        return tuple(_ascending(part) for part in np.split(order, np.cumsum(counts[0])[:-1]))


SPLITS: dict[str, type[Iid] | type[DirichletByCategory] | type[DirichletQuantity]] = {
    split.name: split for split in (Iid, DirichletByCategory, DirichletQuantity)
}
"""Every split by its public name."""


def _redraw(draw: Callable[[], np.ndarray | None], minimum: int, skew: str) -> np.ndarray:
    best = -1
    for _ in range(TRIES):
        counts = draw()
        if counts is None:
            continue
        best = max(best, int(counts.sum(axis=0).min()))
        if best >= minimum:
            return counts
    raise DataError(
        f"no split in {TRIES} draws with {skew} gives every device {minimum} records (best: {max(best, 0)})",
        hint="use fewer devices, a larger alpha or a smaller minimum",
    )


def _cut(shares: np.ndarray, size: int) -> np.ndarray:
    inner = np.minimum((np.cumsum(shares) * size).astype(np.int64)[:-1], size)
    return np.diff(inner, prepend=0, append=size)


def _ascending(indices: np.ndarray) -> Indices:
    return tuple(np.sort(indices).tolist())


def _check(total: int, devices: int, minimum: int) -> None:
    if devices < 1:
        raise ConfigError(f"cannot split over {devices} devices", hint="use at least 1")
    if minimum < 0:
        raise ConfigError(f"the least number of records a device holds is {minimum}", hint="use 0 or more")
    if total < max(devices * minimum, 1):
        raise DataError(
            f"{total} records cannot give {devices} devices {minimum} each",
            hint="use fewer devices or a smaller minimum",
        )


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"alpha is {alpha}", hint="use a number above 0, for example 0.5")
