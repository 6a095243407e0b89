"""edgetune: fine-tune a language model across edge devices, compress it in one shot, hand back a file they run.

What is public in Python is in `__all__` and on docs/python.md, and so are the parts of a method: the names that
`edgetune.directions`, `estimators`, `updates`, `aggregate`, `wire` and `tune` export.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetune.federation.load import load
    from edgetune.federation.tuner import Tuner
    from edgetune.methods.catalogue import tuning_method
    from edgetune.methods.method import TuningMethod
    from edgetune.recipe.recipe import Recipe, load_recipe
    from edgetune.run.pipeline import run

try:
    __version__ = version("edgetune")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

__all__ = [
    "Recipe",
    "Tuner",
    "TuningMethod",
    "__version__",
    "load",
    "load_recipe",
    "run",
    "tuning_method",
]
_HOMES = {
    "Recipe": "edgetune.recipe.recipe",
    "Tuner": "edgetune.federation.tuner",
    "TuningMethod": "edgetune.methods.method",
    "load": "edgetune.federation.load",
    "load_recipe": "edgetune.recipe.recipe",
    "tuning_method": "edgetune.methods.catalogue",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that `edgetune --help` does not wait for torch."""
    if name == "run":
        return import_module("edgetune.run")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'edgetune' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
