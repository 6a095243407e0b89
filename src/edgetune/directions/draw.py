"""Which direction a step takes: a fresh one every time, or one of a finite pool."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.core.errors import ConfigError
from edgetune.core.keys import fresh_seed, key_id, pool_key, stream
from edgetune.core.ledger import DirectionsSpec
from edgetune.directions.hadamard import Hadamard
from edgetune.directions.kind import Kind


@dataclass(frozen=True, slots=True)
class Fresh:
    """A new direction every step; the ledger grows by one entry a step.

    Args:
        kind: what a direction looks like; not a pooled kind.
    """

    kind: Kind

    def __post_init__(self) -> None:
        if isinstance(self.kind, Hadamard):
            raise ConfigError("Hadamard directions form a pool and cannot be drawn fresh", hint="use Pool")

    @property
    def size(self) -> int:
        """0: unbounded."""
        return 0

    def draw(self, seed: int, round: int, device: int, steps: int, each: int = 1) -> list[int]:
        """Return the direction seeds of a device's local steps, `each` a step: a pure function of the arguments."""
        return [fresh_seed(seed, round, device, index) for index in range(steps * each)]


@dataclass(frozen=True, slots=True)
class Pool:
    """One of K directions, drawn uniformly; the ledger is K coefficients for ever.

    Args:
        kind: what a direction looks like; a Hadamard kind must have the pool's size.
        size: K, 1 to 2^20.
    Source: Qin et al. 2024, arXiv:2312.06353, section 4 (FedKSeed).
    """

    kind: Kind
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 1 << 20:
            raise ConfigError(f"a pool needs 1 to 1,048,576 directions, not {self.size}")
        if isinstance(self.kind, Hadamard) and self.kind.size != self.size:
            raise ConfigError(f"a Hadamard kind of {self.kind.size} cannot serve a pool of {self.size}")

    def draw(self, seed: int, round: int, device: int, steps: int, each: int = 1) -> list[int]:
        """Return the pool indices of a device's local steps, `each` a step: a pure function of the arguments.

        The indices of one step differ: a direction taken twice would cost two forward passes and tell nothing new.
        """
        generator = stream(seed, "directions", round, device)
        if each == 1:
            return [int(index) for index in generator.integers(0, self.size, steps)]
        drawn = [generator.choice(self.size, each, replace=False) for _ in range(steps)]
        return [int(index) for step in drawn for index in step]


Directions = Fresh | Pool


def describe(directions: Directions, seed: int) -> DirectionsSpec:
    """Return what a ledger says of these directions."""
    return DirectionsSpec(directions.kind.name, directions.size, key_id(pool_key(seed)), seed)
