"""Optimisers with a history: the slopes that momentum and Adam remember of a pool, or of fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from edgetune.core.part import FRESH, POOL, SLOPES, Part
from edgetune.updates.optimiser import Optimiser

if TYPE_CHECKING:
    from typing_extensions import Self

HISTORY = 64
"""Slopes remembered of fresh seeds if nothing else is said: 0.9^64 is 0.1 %."""


class Remembering(Optimiser):
    """What momentum and Adam of coefficients declare: a pool is remembered whole, of fresh seeds the newest slopes."""

    __slots__ = ()
    options: ClassVar[Mapping[str, str]] = {"learning_rate": "lr", "history": "history"}

    @property
    def title(self) -> str:
        """Say which of the two histories it has."""
        return f"{self.name} {'with a bounded history' if self._history else 'that remembers all directions'}"

    @property
    def needs(self) -> frozenset[str]:
        """Slopes: dense gradients take adamw."""
        return frozenset({SLOPES, FRESH if self._history else POOL})

    @classmethod
    def instead_of(cls, old: Part, given: frozenset[str], wanted: Mapping[str, Any]) -> Self:
        """As `Part.instead_of`; the history is the one that the method's directions take."""
        own = 0 if POOL in given else HISTORY
        return super().instead_of(old, given, {"history": old.settings().get("history", own), **wanted})

    @property
    def _history(self) -> int:
        return int(self.settings()["history"])
