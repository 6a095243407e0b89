"""Which direction a step takes: a fresh one every time, or one of a finite pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.keys import fresh_seed, key_id, pool_key, stream
from edgetune.core.ledger import DirectionsSpec
from edgetune.core.part import ALL_AT_ONCE, DIRECTIONS, FRESH, POOL, SHARED, SLOPES, Part, by_name, pool_of
from edgetune.core.tuned import Adds
from edgetune.core.update import Projected, Update
from edgetune.directions import KINDS, made_of
from edgetune.directions.kind import Kind


class Drawn(Part):
    """The base of ways to draw directions; a device takes all that it is offered, if nothing else is said."""

    __slots__ = ()

    @property
    def offers(self) -> int:
        """Directions that are offered for each that is taken."""
        return 1

    def choose(
        self,
        space: Adds,
        weights: Iterable[tuple[str, torch.Tensor]],
        offered: Sequence[int],
        count: int,
        state: Update | None,
    ) -> list[int]:
        """Return so many of the offered directions, in their order."""
        return list(offered[:count])


@dataclass(frozen=True, slots=True)
class Fresh(Drawn):
    """A new direction every step; the ledger grows by one entry a step.

    Args:
        kind: what a direction looks like; not a pooled kind.
        shared: all devices of a round take the same ones.
    """

    kind: Kind
    shared: bool = False
    name: ClassVar[str] = "fresh"
    options: ClassVar[Mapping[str, str]] = {"directions": "kind"}

    def __post_init__(self) -> None:
        if self.kind.sized:
            raise ConfigError(
                f"{self.kind.name} directions form a pool, and these are drawn fresh every step"
            )

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "fresh directions"

    @property
    def gives(self) -> frozenset[str]:
        """Directions that no later step moves again."""
        return frozenset({DIRECTIONS, FRESH} | ({SHARED} if self.shared else set()))

    @property
    def needs(self) -> frozenset[str]:
        """Slopes along them."""
        return frozenset({SLOPES})

    def settings(self) -> dict[str, object]:
        """Return the option of this part: the name of its kind."""
        return {"directions": self.kind.name}

    def with_option(self, option: str, value: object) -> Fresh:
        """Return directions of another kind, by its name."""
        return Fresh(_kind(str(value), 1), self.shared)

    @classmethod
    def instead_of(cls, old: Part, given: frozenset[str], wanted: Mapping[str, Any]) -> Fresh:
        """Return fresh directions in place of a pool, of its kind or the one that is asked for."""
        kind = wanted.get("directions") or old.settings()["directions"]
        return cls(_kind(str(kind), 1), SHARED in old.gives)

    @property
    def size(self) -> int:
        """0: unbounded."""
        return 0

    def draw(
        self, seed: int, round: int, device: int, steps: int, each: int = 1, *, state: Update | None = None
    ) -> list[int]:
        """Return the direction seeds of a device's local steps, `each` a step: a pure function of the arguments."""
        who = "all" if self.shared else device
        return [fresh_seed(seed, round, who, index) for index in range(steps * each)]

    def corrected_for(self, estimate: Projected, state: Update | None) -> Projected:
        """Return the estimate: no direction is likelier than another."""
        return estimate


@dataclass(frozen=True, slots=True)
class Pool(Drawn):
    """One of K directions, drawn uniformly; the ledger is K coefficients for ever.

    Args:
        kind: what a direction looks like; one that is a pool itself must have this size.
        size: K, 1 to 2^20.
        shared: all devices of a round take the same ones.
    Source: Qin et al. 2024, arXiv:2312.06353, section 4 (FedKSeed).
    """

    kind: Kind
    size: int
    shared: bool = False
    name: ClassVar[str] = "pool"
    options: ClassVar[Mapping[str, str]] = {"directions": "kind", "pool": "size"}

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 1 << 20:
            raise ConfigError(f"a pool needs 1 to 1,048,576 directions, not {self.size}")
        if self.kind.sized and self.kind.limit != self.size:
            raise ConfigError(
                f"a {self.kind.name} kind of {self.kind.limit} cannot serve a pool of {self.size}"
            )

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "a pool of directions"

    @property
    def gives(self) -> frozenset[str]:
        """Directions that are numbered from 0 to K - 1."""
        shared = {SHARED} if self.shared else set()
        summed = {ALL_AT_ONCE} if self.kind.sized else set()
        return frozenset({DIRECTIONS, POOL, pool_of(self.size)} | shared | summed)

    @property
    def needs(self) -> frozenset[str]:
        """Slopes along them."""
        return frozenset({SLOPES})

    def settings(self) -> dict[str, object]:
        """Return the options of this part: the name of its kind, and K."""
        return {"directions": self.kind.name, "pool": self.size}

    @classmethod
    def instead_of(cls, old: Part, given: frozenset[str], wanted: Mapping[str, Any]) -> Pool:
        """Return a pool in place of fresh directions, of their kind or the one that is asked for.

        Raises:
            ConfigError: if its size is not asked for.
        """
        if not wanted.get("pool"):
            raise ConfigError("a pool in place of fresh directions needs pool, its size")
        kind, size = str(wanted.get("directions") or old.settings()["directions"]), int(str(wanted["pool"]))
        return cls(_kind(kind, size), size, SHARED in old.gives)

    def with_option(self, option: str, value: object) -> Pool:
        """Return a pool of another kind, by its name, or of another size."""
        given = {**self.settings(), option: value}
        size = int(str(given["pool"]))
        return replace(self, kind=_kind(str(given["directions"]), size), size=size)

    def draw(
        self, seed: int, round: int, device: int, steps: int, each: int = 1, *, state: Update | None = None
    ) -> list[int]:
        """Return the pool indices of a device's local steps, `each` a step: a pure function of the arguments.

        The indices of one step differ: a direction taken twice would cost two forward passes and tell nothing new.
        """
        generator = stream(seed, "directions", round, "all" if self.shared else device)
        if each == 1:
            return [int(index) for index in generator.integers(0, self.size, steps)]
        drawn = [generator.choice(self.size, each, replace=False) for _ in range(steps)]
        return [int(index) for step in drawn for index in step]

    def corrected_for(self, estimate: Projected, state: Update | None) -> Projected:
        """Return the estimate: no direction is likelier than another."""
        return estimate


Directions = Fresh | Pool


def _kind(name: str, size: int) -> Kind:
    """Return a kind by its name, of a pool's size where it has one.

    Raises:
        ConfigError: naming the nearest.
    """
    return made_of(by_name(name, KINDS, "directions"), size)


def describe(directions: Directions, seed: int) -> DirectionsSpec:
    """Return what a ledger says of these directions."""
    return DirectionsSpec(directions.kind.name, directions.size, key_id(pool_key(seed)), seed)
