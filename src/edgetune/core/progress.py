"""How long work tells whoever watches how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total); `done == total` ends the bar."""


def silent(what: str, done: int, total: int) -> None:
    """Watch nothing."""
