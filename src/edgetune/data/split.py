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
"""Draws of the device sizes before a split is declared infeasible, if they are cheap."""
WORK = 60_000
"""Categories drawn in all these draws together: about two seconds."""


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
        p := p / sum(p);  devices in random order;  u ~ U[0, 1);  cut the shuffled records of c at
        floor(cumsum(p) n_c + u)
        repeat the whole draw until min_i n_i >= minimum

    No device differs from another in distribution, and a device gets n_c p_i records of a category on average, also
    where n_c is small: the published cut, without order and offset, gives what floor leaves over to the last device.

    Args:
        alpha: concentration, above 0; 0.5 is strongly skewed, 5 nearly even.

    Raises:
        ConfigError: alpha, devices, seed or minimum out of range.
        DataError: too few records, or no draw reaches the minimum; the hint names settings that do.
    Cost: O(categories * devices) a try; records are only shuffled for the accepted draw; some seconds at most.
    Source: FedKSeed `partition_idx_labeldir` (arXiv 2312.06353) and Shepherd `client_data_allocation`
        (arXiv 2305.05644). Categories are visited in alphabetical order.
    """

    alpha: float
    name: ClassVar[str] = "dirichlet-category"

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def __call__(self, categories: Sequence[str], devices: int, *, seed: int, minimum: int) -> Shares:
        """Return the positions each device holds."""
        _check(len(categories), devices, minimum)
        labels = np.asarray(categories, dtype=object)
        members = [np.flatnonzero(labels == label) for label in sorted(set(categories))]
        sizes = [len(indices) for indices in members]

        def draws(alpha: float, devices: int) -> Draw:
            generator = stream(seed, "split/dirichlet-category/sizes")
            return lambda: _spread(generator, sizes, alpha, devices)

        counts = _accepted(draws, self.alpha, devices, minimum, len(sizes))
        shuffles = stream(seed, "split/dirichlet-category/records")
        owners = np.empty(len(labels), dtype=np.int64)
        for indices, row in zip(members, counts, strict=True):
            owners[shuffles.permutation(indices)] = np.repeat(np.arange(devices), row)
        ends = np.cumsum(counts.sum(axis=0))[:-1]
        return tuple(_ascending(part) for part in np.split(np.argsort(owners, kind="stable"), ends))


@dataclass(frozen=True, slots=True)
class DirichletQuantity:
    """Quantity skew: every device draws from the same records, but device sizes are Dirichlet.

        p ~ Dir(alpha 1_N);  u ~ U[0, 1);  cut a random permutation at floor(cumsum(p) n + u), devices in random order;
        repeat until min_i n_i >= minimum

    Args:
        alpha: concentration, above 0; small values give a few devices nearly everything.

    Raises:
        ConfigError: alpha, devices, seed or minimum out of range.
        DataError: too few records, or no draw reaches the minimum; the hint names settings that do.
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

        def draws(alpha: float, devices: int) -> Draw:
            generator = stream(seed, "split/dirichlet-quantity/sizes")
            return lambda: _spread(generator, [total], alpha, devices)

        counts = _accepted(draws, self.alpha, devices, minimum, 1)
        order = stream(seed, "split/dirichlet-quantity/records").permutation(total)
        return tuple(_ascending(part) for part in np.split(order, np.cumsum(counts[0])[:-1]))


SPLITS: dict[str, type[Iid] | type[DirichletByCategory] | type[DirichletQuantity]] = {
    split.name: split for split in (Iid, DirichletByCategory, DirichletQuantity)
}
"""Every split by its public name."""

Draw = Callable[[], np.ndarray | None]
"""Draws sizes, int64 [categories, devices], or None where no device was left to give records to."""


def _spread(
    draws: np.random.Generator, sizes: Sequence[int], alpha: float, devices: int
) -> np.ndarray | None:
    held = np.zeros(devices, dtype=np.int64)
    rows = []
    for size in sizes:
        shares = draws.dirichlet(np.full(devices, alpha)) * (held < sum(sizes) / devices)
        mass = shares.sum()
        if not 0 < mass < np.inf:  # with a tiny alpha all proportions of the open devices underflow
            return None
        rows.append(_cut(draws, shares / mass, size))
        held += rows[-1]
    return np.stack(rows)


def _cut(draws: np.random.Generator, shares: np.ndarray, size: int) -> np.ndarray:
    """Round `shares * size` to whole numbers of that sum, each right on average, whatever the order of the devices."""
    order = draws.permutation(len(shares))
    inner = np.minimum(np.floor(np.cumsum(shares[order]) * size + draws.random()).astype(np.int64)[:-1], size)
    counts = np.empty(len(shares), dtype=np.int64)
    counts[order] = np.diff(inner, prepend=0, append=size)
    return counts


def _accepted(
    draws: Callable[[float, int], Draw], alpha: float, devices: int, minimum: int, categories: int
) -> np.ndarray:
    """Return the first draw that gives every device its minimum.

    Args:
        draws: a fresh sequence of draws for a concentration and a number of devices.
        categories: what one draw costs, together with the devices.
    """
    tries = int(min(TRIES, max(5, WORK / (categories * (1 + devices / 500)))))
    counts, best = _first(draws(alpha, devices), minimum, tries)
    if counts is not None:
        return counts
    raise DataError(
        f"no split in {tries} draws with alpha = {alpha:g} gives every device {minimum} records (best: {best})",
        hint=f"{_advice(draws, alpha, devices, minimum, best, tries)} would do",
    )


def _first(draw: Draw, minimum: int, tries: int) -> tuple[np.ndarray | None, int]:
    """Return the first of so many draws that reaches the minimum, if one does, and the best minimum seen."""
    best = 0
    for _ in range(tries):
        counts = draw()
        if counts is not None:
            best = max(best, int(counts.sum(axis=0).min()))
            if best >= minimum:
                return counts, best
    return None, best


def _advice(
    draws: Callable[[float, int], Draw], alpha: float, devices: int, minimum: int, best: int, tries: int
) -> str:
    """Name settings with which the very same draws succeed: each was tried."""

    def works(alpha: float, devices: int) -> bool:
        return _first(draws(alpha, devices), minimum, max(2, tries // 20))[0] is not None

    found = [f"split.minimum={best}"] if best else []
    larger = (alpha * factor for factor in (2, 5, 20, 100) if alpha * factor <= 1e6)
    found += [f"split.alpha={one:g}" for one in larger if works(one, devices)][:1]
    fewer = dict.fromkeys(devices * share // 8 for share in (6, 4, 2, 1))
    found += [f"federation.devices={one}" for one in fewer if 0 < one < devices and works(alpha, one)][:1]
    return ", ".join([*found, "split.kind=iid"])


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
            hint="lower federation.devices or split.minimum",
        )


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < float("inf"):
        raise ConfigError(f"alpha is {alpha}", hint="use a number above 0, for example 0.5")
