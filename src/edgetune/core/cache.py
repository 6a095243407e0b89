"""Where files lie that may be lost at any time: fetched models, results that would be found again."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "EDGETUNE_CACHE"
"""Environment variable that names the folder."""


def cache_folder(part: str) -> Path:
    """Return the folder of one kind of cached files; nothing is created.

        $EDGETUNE_CACHE/part,   else $XDG_CACHE_HOME/edgetune/part,   else ~/.cache/edgetune/part

    An empty variable, and a relative XDG_CACHE_HOME, count as not set.

    Args:
        part: what is kept there, for example `models`.
    Source: XDG Base Directory Specification 0.8.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return Path(own).expanduser() / part
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "edgetune" / part
