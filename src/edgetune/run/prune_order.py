"""Where pruning stands among the stages of a run, and what follows from that before the run starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.core.errors import ConfigError
from edgetune.core.progress import Progress
from edgetune.recipe.preflight import look_ahead
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.recipe import Recipe
from edgetune.run.elsewhere import Elsewhere
from edgetune.run.names import MODEL
from edgetune.run.pruned_base import PrunedBase, pruned_base
from edgetune.run.pruning import check_pruning, shape_of_pruned
from edgetune.run.stage import Stage


def place_of(stages: Sequence[Stage[Any, Any]], name: str) -> int:
    """Return where a stage is in the list; behind its end if it is not there."""
    names = [stage.name for stage in stages]
    return names.index(name) if name in names else len(names)


def prunes_first(stages: Sequence[Stage[Any, Any]]) -> bool:
    """Say whether what is tuned is a pruned base."""
    return place_of(stages, "prune") < place_of(stages, "tune") < len(stages)


def check_pruning_order(
    recipe: Recipe, stages: Sequence[Stage[Any, Any]], elsewhere: Elsewhere | None
) -> None:
    """Refuse what could not be pruned, before anything is loaded.

    Raises:
        ConfigError: settings that do not fit together; devices that would not have the pruned base.
    """
    if place_of(stages, "prune") == len(stages):
        return
    check_pruning(recipe.pruning)
    if place_of(stages, "round") < place_of(stages, "prune"):
        raise ConfigError(
            "what is rounded is compared with what is compressed, so that both are pruned",
            where="stages",
            hint="put 'prune' before 'round'",
        )
    if elsewhere is not None and prunes_first(stages):
        raise ConfigError(
            "devices on other hosts hold the base as it is, not one that this run prunes",
            where="stages",
            hint="edgetune prune makes a folder; give it to the devices, and to --model",
        )


def shape_of_file(
    prepared: Prepared, stages: Sequence[Stage[Any, Any]], out: Path, progress: Progress
) -> tuple[Prepared, PrunedBase | None]:
    """Return a run with the shape that its file will have, and where it prunes before it tunes the pruned base.

    What pruning or the writing of its result would refuse is refused first, on a model without values.
    """
    if place_of(stages, "prune") == len(stages):
        return prepared, None
    backbone = prepared.backbone
    shape = shape_of_pruned(backbone.model, prepared.recipe.pruning)
    planned = replace(prepared, backbone=replace(backbone, model=shape))
    if not prunes_first(stages):
        return planned, None
    writers = [stage.writes for stage in stages if stage.writes]
    if writers:
        look_ahead(planned, out / MODEL, writers[0](prepared.recipe), file=True)
    made = pruned_base(prepared, out, progress)
    return made.prepared, made
