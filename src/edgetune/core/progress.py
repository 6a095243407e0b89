"""How long work tells whoever watches how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, int], None]
"""Called with (what, done, total); `done == total` ends the bar. A part of one counts, where it is known."""


def silent(what: str, done: float, total: int) -> None:
    """Watch nothing."""
