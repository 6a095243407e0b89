"""Directions: pure functions of (key, tensor name, seed, element index), the same bits on every device."""

from edgetune.directions.gaussian import Gaussian
from edgetune.directions.hadamard import Hadamard
from edgetune.directions.kind import Kind
from edgetune.directions.rademacher import Rademacher
from edgetune.directions.source import CachedSource, Source

KINDS: dict[str, type[Kind]] = {kind.name: kind for kind in (Rademacher, Gaussian, Hadamard)}
"""Kinds of direction by the name that ledgers and recipes use."""

__all__ = ["KINDS", "CachedSource", "Gaussian", "Hadamard", "Kind", "Rademacher", "Source"]
