"""What a server waits for, how long, and what it knows of whom."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.core.reasons import shortened
from edgetune.federation.hands import Task
from edgetune.federation.pipes import Message
from edgetune.hosts.kinds import NO

MOST = 2**32 - 1
"""Examples that a device can say: its replies have 32 bits for them."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server waits.

    Args:
        wanted: replies that end a round, at least 1; the first ones count.
        minimum: replies without which it waits on, at least 1.
        seconds: after which a round takes no more, if it has the minimum.
    """

    wanted: int
    minimum: int
    seconds: float


@dataclass(slots=True)
class Registered:
    """A device as its server knows it: how many examples it has said, in which session it was told of the run."""

    examples: int = 0
    session: str = ""
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message under way: to whom, in which session, what for; None if it tells of the run.

    Args:
        whole: it carries the whole state that it builds on; who wants that once more does not get it.
    """

    device: int
    session: str
    task: Task | None
    whole: bool = False


def why_not(said: Message) -> str:
    """Return what a device gives as its reason, on one line and of a length that a log can bear."""
    text = said.head.get("why") if said.kind == NO else said.head.get("what")
    return shortened(str(text or f"it answers {said.kind[:20]!r}"), 300)
