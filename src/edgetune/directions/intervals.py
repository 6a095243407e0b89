"""Fresh directions that stay in one subspace for an interval of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from edgetune.core.errors import ConfigError
from edgetune.core.keys import fresh_seed
from edgetune.core.update import Update
from edgetune.directions.draw import Fresh
from edgetune.directions.subspace import SubspaceKind, subspace_of

LOW = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Intervals(Fresh):
    """New directions every step, whose seeds have the same upper 32 bits for an interval of a device's steps.

        t = round * steps + step,   b = seed of (device, t div interval),   i = each * (t mod interval) + query
        seed = upper(b) + (lower(b) + i) mod 2^32

    Intervals go on from round to round; no two steps of one share a direction.

    Args:
        kind: what a direction looks like; one that draws a subspace from the upper bits.
        shared: all devices of a round take the same ones.
        interval: steps, 1 to 2^20.

    Raises:
        ConfigError: for another kind, or an interval out of range.
    Source: Chen et al. 2024, arXiv:2410.07698 (LOZO, lazy sampling: 50 steps).
    """

    interval: int = 50
    name: ClassVar[str] = "intervals"
    options: ClassVar[Mapping[str, str]] = {**Fresh.options, "interval": "interval"}

    def __post_init__(self) -> None:
        Fresh.__post_init__(self)
        if not isinstance(self.kind, SubspaceKind):
            raise ConfigError(
                f"{self.kind.name} directions have no subspace that could stay for an interval",
                hint="take lozo or subzero directions, or draw fresh ones",
            )
        if not 1 <= self.interval <= 1 << 20:
            raise ConfigError(f"a subspace stays for 1 to 1,048,576 steps, not for {self.interval}")

    def settings(self) -> dict[str, object]:
        """Return the options of this part."""
        return {"directions": self.kind.name, "interval": self.interval}

    def with_option(self, option: str, value: object) -> Intervals:
        """Return directions of another kind, by its name, or with another interval."""
        if option == "interval":
            return replace(self, interval=int(str(value)))
        return replace(self, kind=Fresh.with_option(self, option, value).kind)

    @classmethod
    def instead_of(cls, old: Any, given: frozenset[str], wanted: Mapping[str, Any]) -> Intervals:
        """Return such directions in place of others."""
        plain = Fresh.instead_of(old, given, wanted)
        return cls(plain.kind, plain.shared)

    def draw(
        self, seed: int, round: int, device: int, steps: int, each: int = 1, *, state: Update | None = None
    ) -> list[int]:
        """Return the direction seeds of a device's local steps, `each` a step: a pure function of the arguments."""
        who = "all" if self.shared else device
        drawn = []
        for step in range(round * steps, (round + 1) * steps):
            interval, place = divmod(step, self.interval)
            first = fresh_seed(seed, "interval", who, interval)
            drawn += [
                subspace_of(first) | (first + index) & LOW
                for index in range(place * each, (place + 1) * each)
            ]
        return drawn
