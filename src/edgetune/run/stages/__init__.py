"""The stages of the main job, one file each; the file name is the public name."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

from edgetune.core.errors import ConfigError, nearest
from edgetune.run.stage import Stage


def stage_names() -> list[str]:
    """Return the names of all stages, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def stage_named(name: str) -> Stage[Any, Any]:
    """Return a stage.

    Raises:
        ConfigError: if there is none of that name, with the nearest one.
    """
    known = stage_names()
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"no stage called {name!r}", where="stages", hint=hint)
    found: Stage[Any, Any] = import_module(f"{__name__}.{name}").STAGE
    return found
