"""The quick test on what a recipe describes: its model, its records, its method, its plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import cast

from edgetune.core.batch import Batch, records_of, response_loss
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key, stream
from edgetune.core.progress import Progress, silent
from edgetune.data.encode import collate
from edgetune.directions.draw import Directions
from edgetune.directions.space import BoundSpace
from edgetune.federation.precision import least_radius
from edgetune.federation.start import Start
from edgetune.federation.worker import Worker
from edgetune.measure.realised import sample_weights
from edgetune.measure.scores import token_f1
from edgetune.methods.method import TuningMethod
from edgetune.recipe.asking import asked_devices
from edgetune.recipe.open_settings import left_open
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.residency import RESIDENCIES
from edgetune.suggest.first_step import find_rate
from edgetune.suggest.lines import Lines
from edgetune.suggest.quick import SIZES, SMALLEST, Ahead, Quick, find_settings
from edgetune.tune import ProjectedTuned, parts_of, release

SHARE = 0.15
"""Of the records that a run passes through the model."""
LEAST = 80
"""Records that the shortest run is worth."""
SCORED, SCORED_LINES, SCORED_TIMES = 16, 2, (1, 4, 16, 64)
"""Records whose scores are compared, lines along which, and radii, in units of the method's, where it is open."""


def work_ahead(prepared: Prepared, *, single: bool) -> Ahead:
    """Return the run that a recipe plans, and what a test of it may cost.

    Args:
        prepared: model, data, method.
        single: one device holds all data.
    """
    plan, method = prepared.recipe.federation, prepared.method
    held = sum(map(len, prepared.devices.values()))
    batch_size, steps = min(method.batch_size, held), plan.rounds * method.local_steps
    asked = 1 if single else asked_devices(len(prepared.devices), plan.participation)
    records = int(SHARE * steps * asked * batch_size * method.estimate.passes)
    if method.holds:
        many = method.local_steps * method.estimate.directions * (1 if method.shares_directions else asked)
        return Ahead(batch_size, many, plan.rounds, max(LEAST, records))
    return Ahead(batch_size, method.estimate.directions, steps, max(LEAST, records))


def refuse_equal_scores(prepared: Prepared) -> None:
    """Refuse, before a run, scores that are all equal and stay so: every slope would be zero.

    Args:
        prepared: model, data, method; the model is left as it was.

    Raises:
        ConfigError: naming an objective that tells answers apart.
    Cost: answers to 16 training records; to 4 records at up to 16 perturbed models more, where those score alike.
    """
    method = prepared.method
    if method.objective is None or method.directions is None or method.eps is None:
        return
    scored = method.objective.bind(prepared.backbone.tokenizer)
    worker = Worker(
        prepared.backbone, method, prepared.recipe.seed, RESIDENCIES[prepared.recipe.model.residency]
    )
    lines = Lines(
        cast(ProjectedTuned, worker.tuned),
        scored.records,
        _batches(prepared),
        method.directions.draw(prepared.recipe.seed, 0, 0, SCORED_LINES),
    )
    times = SCORED_TIMES if "eps" in left_open(prepared.recipe, method) else (1,)
    try:
        seen = set(lines.look(0, SCORED, (0.0,)).sums.ravel().tolist())
        for factor in times:
            for line in range(SCORED_LINES):
                if len(seen) > 1:
                    return
                eps = factor * method.eps
                seen |= set(lines.look(line, SCORED // 4, (eps, -eps)).sums.ravel().tolist())
    finally:
        release(worker.tuned)
    if len(seen) > 1:
        return
    others = "loss" if method.objective.score is token_f1 else "token_f1 or loss"
    raise ConfigError(
        f"the score is {-seen.pop():g} for every record, and no perturbation of the model changes it: nothing can be "
        "learnt from it",
        where="method.objective",
        hint=f"--set method.objective={others}, a larger method.answer_tokens, or a larger method.eps",
    )


def find_prepared(prepared: Prepared, *, single: bool, progress: Progress = silent) -> Quick:
    """Find learning rate and radius for a run; the model is left as it was.

    Records are drawn from all devices', directions as the method draws them, both under names that no training step
    uses.

    Args:
        prepared: model, data, method.
        single: one device holds all data.
        progress: told how far it is.

    Raises:
        DivergenceError: as `suggest.quick.find_settings`.
    Cost: `work_ahead`'s records at most, and those of a first radius.
    """
    method, seed = prepared.method, prepared.recipe.seed
    residency, start = RESIDENCIES[prepared.recipe.model.residency], Start(prepared.sample)
    worker = Worker(prepared.backbone, method, seed, residency, start=start, lesson=prepared.lesson)
    minimised = worker.objective or response_loss
    batch, ahead, tuned = _batches(prepared), work_ahead(prepared, single=single), worker.tuned
    try:
        progress("range test", 0, 1)
        if method.eps is None or not isinstance(tuned, ProjectedTuned):
            found = find_rate(tuned, method, minimised, batch, steps=ahead.steps, seed=seed)
        else:
            directions = cast(Directions, method.directions)  # a forward-only method has some
            space = BoundSpace(directions.kind, pool_key(seed))
            sample = sample_weights(parts_of(tuned))
            keys = directions.draw(seed, 0, 0, max(many for many, _ in SIZES) + 2)
            found = find_settings(
                Lines(tuned, records_of(minimised), batch, keys),
                ahead,
                method.eps,
                scale=lambda slope: scale_of(method, slope, ahead.directions),
                least=cache(lambda eps: least_radius(space, sample, max(eps, SMALLEST))),
                stepped=method.objective is not None,
            )
        progress("range test", 1, 1)
    finally:
        release(tuned)
    return found


def scale_of(method: TuningMethod, slope: float, count: int) -> float:
    """Return a method's rate as a multiple of plain descent's along the mean of so many slopes of some size."""
    unit = method.estimate.scale(slope)
    return unit * method.local.scale(slope / unit) * method.aggregate.scale(slope / unit, count)


def _batches(prepared: Prepared) -> Callable[[int, int], Batch]:
    """Return what draws the records of a numbered batch from all devices', none twice."""
    examples = [example for share in prepared.devices.values() for example in share]

    def batch(index: int, records: int) -> Batch:
        rows = stream(prepared.recipe.seed, "suggest", "quick", index).permutation(len(examples))[:records]
        chosen = [examples[int(row)] for row in rows]
        return collate(chosen, prepared.pad_id).to(prepared.backbone.model.device)

    return batch
