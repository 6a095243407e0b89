"""The main job: a list of stages on one model and its data, in order, told to a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.core.errors import INTERRUPTED, ConfigError, EdgetuneError
from edgetune.core.event_log import EventLog
from edgetune.core.events import (
    Event,
    Failed,
    Listener,
    Privacy,
    RunFinished,
    ignore,
)
from edgetune.core.files import owned_folder
from edgetune.core.progress import Progress, silent
from edgetune.federation.arithmetic import refuse_other_arithmetic
from edgetune.federation.hands import Party
from edgetune.federation.precision import check_precision, check_reads
from edgetune.federation.privacy import protect
from edgetune.federation.tuning import completed_rounds
from edgetune.federation.workers import open_crew
from edgetune.recipe.asking import check_buffer
from edgetune.recipe.preflight import compression_of, look_ahead, plan_for
from edgetune.recipe.prepare import Prepared, prepare, recipe_method
from edgetune.recipe.recipe import Recipe
from edgetune.run.elsewhere import Elsewhere
from edgetune.run.prune_order import check_pruning_order, place_of, prunes_first, shape_of_file
from edgetune.run.stage import File, Model, Stage, check_order
from edgetune.run.stages import stage_named
from edgetune.run.work import EVENTS, LEDGER, MODEL, Work
from edgetune.suggest.preparing import refuse_equal_scores
from edgetune.suggest.settling import settle

STAGES = ("base", "tune", "round", "compress", "measure")
"""Stages of `edgetune run`, if the recipe names none."""
TUNING = ("base", "tune")
"""Stages of `edgetune tune` and `edgetune federate`."""


def run(
    recipe: Recipe,
    out: Path,
    *,
    command: str = "edgetune.run(recipe, out)  # the configuration below is the recipe",
    listener: Listener = ignore,
    progress: Progress = silent,
    stages: Sequence[str] | None = None,
    single: bool = False,
    elsewhere: Elsewhere | None = None,
) -> Model | File:
    """Do a recipe's stages; a killed run with the same recipe and folder goes on after its last round.

    Args:
        recipe: everything about the run.
        out: folder of the results: events.jsonl, manifest.json, tuned.ledger, model.gguf, pruned (a model folder).
        command: the exact command, for the report.
        listener: told of every event besides the log.
        progress: told how far long work is.
        stages: names in order; the recipe's if not given, and `STAGES` if it names none.
        single: one device holds all data.
        elsewhere: devices on other hosts; the recipe's data are spread over devices of this process if not given.

    Returns:
        What the last stage gave.

    Raises:
        ConfigError: if the stages cannot be done in this order.
        EdgetuneError: of any stage; it is also the last event of the log.
    """
    chosen = [stage_named(name) for name in stages or recipe.stages or STAGES]
    check_order(chosen)
    _refuse_unmerged(recipe, chosen)
    check_pruning_order(recipe, chosen, elsewhere)
    if prunes_first(chosen):  # where a program named the stages, the recipe does not know it yet
        recipe = recipe.model_copy(update={"stages": tuple(stage.name for stage in chosen)})
    with _logged(
        recipe, out, chosen, command, listener, progress, single=single, elsewhere=elsewhere
    ) as work:
        artefact: Any = Model(work.base.model)
        for stage in chosen:
            artefact = stage.work(work, artefact)
        result: Model | File = artefact
        return result


def _refuse_unmerged(recipe: Recipe, stages: Sequence[Stage[Any, Any]]) -> None:
    tuning = [stage.name for stage in stages][place_of(stages, "tune") :]
    if not tuning or not ("prune" in tuning or any(stage.writes for stage in stages)):
        return
    target = recipe_method(recipe).target
    if not target.merges:
        raise ConfigError(
            f"a trained {target.name} cannot be merged into a model file",
            hint=f"edgetune tune {recipe.method.name}",
        )


@contextmanager
def _logged(
    recipe: Recipe,
    out: Path,
    stages: Sequence[Stage[Any, Any]],
    command: str,
    listener: Listener,
    progress: Progress,
    *,
    single: bool,
    elsewhere: Elsewhere | None,
) -> Iterator[Work]:
    """Open the log, announce the run, and close the log with its end or its error.

    What is refused before the run starts (settings, data, model, another run's folder) leaves an older log untouched.
    """
    with owned_folder(out):
        writers = [stage.writes for stage in stages if stage.writes]
        compression = writers[0](recipe) if writers else compression_of(recipe)
        tunes = any(stage.name == "tune" for stage in stages)
        if tunes and single:
            recipe_method(recipe).check_alone()
        elif tunes:
            check_buffer(recipe.federation, recipe_method(recipe))
        matrices = not tunes or any(stage.matrices for stage in stages)
        prepared = prepare(recipe, split=elsewhere is None, matrices=matrices)
        prepared = prepared if elsewhere is None else elsewhere.stood_in(prepared)
        shaped, pruned = shape_of_file(prepared, stages, out, progress)
        prepared = prepared if pruned is None else shaped
        plan, planned = look_ahead(shaped, out / MODEL, compression, file=bool(writers))
        found: list[Event | None] = [*(pruned.events if pruned else ()), planned]
        done = 0
        if tunes:
            prepared, more, done = _ready_to_tune(prepared, out, single, elsewhere, progress)
            found += more
        log = EventLog(out / EVENTS)

        def tell(event: Event) -> None:
            log(event)
            listener(event)

        start = time.perf_counter()
        rounds = 0 if single or not tunes else recipe.federation.rounds - done
        crew: Party
        if elsewhere is None:
            crew = open_crew(prepared, rounds=rounds, scratch=out, listener=tell)
        else:
            crew = elsewhere.party(tell)
        try:
            work = Work(
                prepared, out, tell, progress, crew, single=single, done=done, plan=plan,
                replan=lambda new: plan_for(new, compression if writers else None),
                dense=pruned.dense if pruned else None, earlier=pruned.seconds if pruned else 0.0,
            )  # fmt: skip
            del pruned  # which holds the dense model
            work.announce(command)
            for event in found:
                if event is not None:
                    tell(event)
            with crew:
                yield work
            tell(RunFinished(time.perf_counter() - start))
        except EdgetuneError as error:
            tell(Failed(str(error), error.exit_code))
            raise
        except KeyboardInterrupt as stop:
            tell(Failed("interrupted", getattr(stop, "exit_code", INTERRUPTED)))
            raise


def _ready_to_tune(
    prepared: Prepared, out: Path, single: bool, elsewhere: Elsewhere | None, progress: Progress
) -> tuple[Prepared, list[Event | None], int]:
    """Return a run with all its settings, what was found for it, and the rounds that its folder holds already."""
    resumed = (out / LEDGER).exists()
    if not resumed:
        refuse_equal_scores(prepared)
    prepared, rate = settle(prepared, out / EVENTS, single=single, resumed=resumed, progress=progress)
    prepared, spent = _protected(prepared, single, elsewhere, resumed=resumed, progress=progress)
    found = [rate, spent, *_checked(prepared)]
    done = completed_rounds(prepared, out / LEDGER, single=single)
    if done:
        refuse_other_arithmetic(out / EVENTS, prepared.backbone.model.device.type)
    return prepared, found, done


def _protected(
    prepared: Prepared, single: bool, elsewhere: Elsewhere | None, *, resumed: bool, progress: Progress
) -> tuple[Prepared, Privacy | None]:
    """Return what `protect` does; devices on other hosts are told of the run, and say what they hold, before it."""
    if elsewhere is None:
        return protect(prepared, single=single)
    prepared = replace(prepared, devices={})
    held = elsewhere.meet(prepared, resumed=resumed, progress=progress)
    prepared, spent = protect(prepared, single=False, held=held)
    if spent is not None:  # the noise is told as well
        elsewhere.meet(prepared, resumed=resumed, progress=progress)
    return prepared, spent


def _checked(prepared: Prepared) -> list[Event | None]:
    """Refuse what tuning would refuse, and return what was measured for it."""
    recipe = prepared.recipe
    precision = check_precision(
        prepared.backbone, prepared.method, recipe.seed, accept=recipe.model.accept_rounding
    )
    check_reads(prepared.backbone, prepared.method)
    return [precision]
