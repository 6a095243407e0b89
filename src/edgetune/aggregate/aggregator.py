"""What every way to combine devices' updates can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from edgetune.core.part import Part
from edgetune.core.update import Contribution, Update


class Aggregator(Part):
    """From the devices' contributions to one update; implementations are frozen values."""

    __slots__ = ()

    @abstractmethod
    def combine(self, contributions: Sequence[Contribution]) -> Update | None:
        """Return the update, whatever the order of the contributions, or None if there is nothing to combine."""
