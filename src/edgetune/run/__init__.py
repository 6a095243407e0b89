"""The main job as a list of stages, and what they share; `edgetune.run(recipe, out)` does it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgetune.recipe.recipe import Recipe
    from edgetune.run.stage import File, Model


class _Room(ModuleType):
    """The package, and at once the function that programs call: one name, whichever was imported first."""

    def __call__(self, recipe: Recipe, out: str | Path, **how: Any) -> Model | File:
        """Do a recipe's stages; see `edgetune.run.pipeline.run`."""
        from edgetune.run import pipeline

        return pipeline.run(recipe, Path(out), **how)


sys.modules[__name__].__class__ = _Room
