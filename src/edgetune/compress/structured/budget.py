"""Which groups stay: alike in every layer, or as many in each as its groups are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from edgetune.compress.structured.groups import Groups
from edgetune.core.errors import ConfigError

Keep = list[list[torch.Tensor]]
"""int64 [k] groups that stay, ascending, by block and kind."""


@dataclass(frozen=True, slots=True)
class Priced:
    """The groups of one kind in one block, with what they weigh and what they are worth.

    Args:
        groups: the groups.
        weights: of one group.
        scores: float32 [groups].
        fine: groups are feed-forward channels, which go and stay in multiples; else heads.
        counts: how many may stay where all layers are alike; any number if empty.
    """

    groups: Groups
    weights: int
    scores: torch.Tensor
    fine: bool
    counts: tuple[int, ...] = ()

    @property
    def multiple(self) -> int:
        """How many groups go at a time: kept widths fit the blocks of quantised formats."""
        count = self.groups.count
        return (256 if count >= 2048 else 32 if count >= 64 else 1) if self.fine else 1

    def best(self, count: int) -> torch.Tensor:
        """Return the groups with the highest scores, ascending; of equal ones the first."""
        return self.scores.sort(descending=True, stable=True).indices[:count].sort().values


class Budget(Protocol):
    """A rule that shares out what is to be removed."""

    def keep(self, priced: Sequence[Sequence[Priced]], ratio: float) -> Keep:
        """Return the groups that stay.

        Args:
            priced: by block and kind, heads before channels.
            ratio: share of the groups' weights to remove, in (0, 1).
        """


def check_ratio(ratio: float) -> None:
    """Refuse a share that is none.

    Raises:
        ConfigError: unless 0 < ratio < 1.
    """
    if not 0 < ratio < 1:
        raise ConfigError(
            f"a share of {ratio} cannot be removed", where="--ratio", hint="between 0 and 1: 0.2"
        )


@dataclass(frozen=True, slots=True)
class Uniform:
    """The same widths in every layer; which groups stay is each layer's own choice.

        kv' nearest to (1 - r) kv,   the channels make up for what the rounding of the heads leaves to remove

    so that the share of weights that was asked for is what goes, as nearly as multiples of 32 channels (256 from a
    width of 2,048) allow. At least one head and one multiple stay.
    """

    def keep(self, priced: Sequence[Sequence[Priced]], ratio: float) -> Keep:
        """Return the best groups of every layer."""
        check_ratio(ratio)
        counts = self._counts(priced[0], ratio)
        if any(
            [one.groups.count for one in own] != [one.groups.count for one in priced[0]] for own in priced
        ):
            raise ConfigError(
                "the layers of this model differ already", where="--width", hint="--width per_layer"
            )
        return [[one.best(count) for one, count in zip(own, counts, strict=True)] for own in priced]

    def _counts(self, own: Sequence[Priced], ratio: float) -> list[int]:
        left = ratio * sum(one.weights * one.groups.count for one in own)
        counts = []
        for one in sorted(own, key=lambda one: one.fine):
            total, step = one.groups.count, one.multiple
            wanted = total - left / one.weights if one.fine else (1 - ratio) * total
            allowed = one.counts or [total, *range(step, total, step)]
            count = min(allowed, key=lambda count, wanted=wanted: (abs(count - wanted), -count))
            left -= (total - count) * one.weights
            counts.append(count)
        return counts


@dataclass(frozen=True, slots=True)
class PerLayer:
    """The groups that are worth least a weight go first, wherever they are.

    Channels go in multiples from the least of a layer upwards. One head and one multiple of channels stay in each.

    Args:
        first, last: layers at the two ends that are left alone; LLM-Pruner spares 3 or 4 and 1 or 2.
    Source: LLM-Pruner, section 3.3, over all layers at once.
    """

    first: int = 0
    last: int = 0

    def keep(self, priced: Sequence[Sequence[Priced]], ratio: float) -> Keep:
        """Return what stays once as near as possible to the share has gone."""
        check_ratio(ratio)
        if min(self.first, self.last) < 0 or self.first + self.last >= len(priced):
            raise ConfigError(
                f"of {len(priced)} layers, {self.first} and {self.last} cannot be left alone", where="--spare"
            )
        left = ratio * sum(one.weights * one.groups.count for own in priced for one in own)
        counts = [[one.groups.count for one in own] for own in priced]
        for _, weights, layer, kind, size in self._parcels(priced):
            if left <= weights / 2:
                break
            counts[layer][kind] -= size
            left -= weights
        return [
            [one.best(count) for one, count in zip(own, some, strict=True)]
            for own, some in zip(priced, counts, strict=True)
        ]

    def _parcels(self, priced: Sequence[Sequence[Priced]]) -> list[tuple[float, int, int, int, int]]:
        """Return what can go: (worth a weight, weights, layer, kind, groups), the cheapest first."""
        found = []
        for layer in range(self.first, len(priced) - self.last):
            for kind, one in enumerate(priced[layer]):
                ascending, start = one.scores.sort().values.double(), 0
                size = one.groups.count % one.multiple or one.multiple
                while start + size < one.groups.count:
                    weights = size * one.weights
                    worth = float(ascending[start : start + size].sum()) / weights
                    found.append((worth, weights, layer, kind, size))
                    start, size = start + size, one.multiple
        return sorted(found, key=lambda parcel: (parcel[0], parcel[2:4]))


WIDTHS: Mapping[str, Budget] = {"uniform": Uniform(), "per_layer": PerLayer()}
"""By public name."""
