"""Directions: pure functions of (key, tensor name, seed, element index), the same bits on every device."""

from edgetune.directions.gaussian import Gaussian
from edgetune.directions.hadamard import Hadamard
from edgetune.directions.kind import Kind
from edgetune.directions.lozo import Lozo
from edgetune.directions.rademacher import Rademacher
from edgetune.directions.rank_one import RankOne
from edgetune.directions.rank_one_pool import RankOnePool
from edgetune.directions.source import CachedSource, Source
from edgetune.directions.subzero import SubZero

KINDS: dict[str, type[Kind]] = {
    kind.name: kind for kind in (Rademacher, Gaussian, Hadamard, RankOne, RankOnePool, Lozo, SubZero)
}
"""Kinds of direction by the name that ledgers and recipes use."""


def made_of(kind: type[Kind], size: int) -> Kind:
    """Return a kind of direction, with the size of its pool where it is one."""
    return kind(size) if kind.sized else kind()  # type: ignore[call-arg]


__all__ = [
    "KINDS",
    "CachedSource",
    "Gaussian",
    "Hadamard",
    "Kind",
    "Lozo",
    "Rademacher",
    "RankOne",
    "RankOnePool",
    "Source",
    "SubZero",
    "made_of",
]
