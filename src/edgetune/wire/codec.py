"""What every codec can do: write an update for someone who knows something, and read it there."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

from edgetune.core.part import Part
from edgetune.core.update import Update
from edgetune.wire.known import Known

U = TypeVar("U", bound=Update)


class Codec(Part):
    """A wire format of updates; implementations are frozen values.

    One update has one encoding: whatever else a message holds is refused where it is read.
    """

    __slots__ = ()
    relative: ClassVar[bool] = False
    """Whether a message is shorter for who holds an earlier state."""

    @abstractmethod
    def encode(self, update: Update, known: Known) -> bytes:
        """Return the bytes.

        Raises:
            DataError: if the update is none that this codec carries.
        """

    @abstractmethod
    def decode(self, body: bytes, known: Known) -> Update:
        """Return the update.

        Raises:
            DigestError: if the bytes are none that `encode` writes.
        """

    def settle(self, update: U) -> U:
        """Return what arrives of an update: the server holds that and nothing else, so that all have the same bits."""
        return update
