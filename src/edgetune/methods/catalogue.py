"""Find methods by name: the file name in `methods/tuning` or `methods/compression` is the registry."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

from edgetune.compress.method import CompressionMethod
from edgetune.core.errors import ConfigError, nearest
from edgetune.methods import compression, tuning
from edgetune.methods.cards import is_file
from edgetune.methods.method import TuningMethod
from edgetune.methods.own import method_of


def tuning_names() -> list[str]:
    """Return the names of all tuning methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(tuning.__path__))


def compression_names() -> list[str]:
    """Return the names of all compression methods, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(compression.__path__))


def tuning_method(name: str) -> TuningMethod:
    """Return a tuning method.

    Args:
        name: one of `tuning_names()`, or a .py file that defines `METHOD`, which is executed.

    Raises:
        ConfigError: if there is none of that name, with the nearest one; as `methods.own.method_of` for a file.
    """
    if is_file(name):
        return method_of(Path(name))
    method: TuningMethod = _load("tuning", name, tuning_names())
    return method


def compression_method(name: str) -> CompressionMethod:
    """Return a compression method.

    Raises:
        ConfigError: if there is none of that name, with the nearest one.
    """
    method: CompressionMethod = _load("compression", name, compression_names())
    return method


def _load(kind: str, name: str, known: list[str]) -> Any:
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"no {kind} method called {name!r}", hint=hint)
    return import_module(f"edgetune.methods.{kind}.{name}").METHOD
