"""What an engine does for a server and for a device: carry messages of bytes, and say who is there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Carried:
    """Bytes on the socket between the server and a device since the server started.

    Args:
        up: received from the device, bytes.
        down: sent to it, bytes.
    """

    up: int = 0
    down: int = 0


class Link(Protocol):
    """The server's end."""

    def sessions(self) -> Mapping[int, str]:
        """Return the devices that are there; the name changes when a device was away, even if only for a moment."""
        ...

    def send(self, device: int, message: bytes) -> str:
        """Leave a message for a device; returns the ticket that the reply is found by."""
        ...

    def replies(self, tickets: Collection[str]) -> dict[str, bytes]:
        """Return the replies that are there, each once."""
        ...

    def forget(self, tickets: Collection[str]) -> None:
        """Take messages back; a reply to one is lost."""
        ...

    def withdraw(self, tickets: Collection[str]) -> set[str]:
        """Take back those messages that their devices have not fetched yet; returns which they are."""
        ...

    def carried(self) -> dict[int, Carried]:
        """Return the bytes on the socket, by device."""
        ...

    def turned_away(self) -> list[tuple[int | None, str]]:
        """Return who was turned away since this was asked last, None for a stranger, and why."""
        ...


class Post(Protocol):
    """A device's end."""

    def receive(self) -> tuple[str, bytes] | None:
        """Return a message and its ticket; None if there is none."""
        ...

    def reply(self, ticket: str, message: bytes) -> None:
        """Answer a message."""
        ...
