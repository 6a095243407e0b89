"""The range test on what a recipe describes: its model, its data on one device, its method."""

from __future__ import annotations

from functools import cache

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key, stream
from edgetune.core.progress import Progress, silent
from edgetune.data.encode import collate
from edgetune.directions.space import BoundSpace
from edgetune.federation.worker import Worker
from edgetune.measure.realised import realised_perturbation, sample_weights
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.residency import RESIDENCIES
from edgetune.suggest.probe import Problem
from edgetune.suggest.range_test import DIRECTIONS, STEPS, Suggestion, suggest
from edgetune.tune import ProjectedTuned, parts_of
from edgetune.updates import Sgd

PROBE, PROBE_BATCH = 64, 16
"""Training records on which trials are compared, and how many of them at a time."""


def suggest_prepared(prepared: Prepared, progress: Progress = silent) -> Suggestion:
    """Run the range test; the model is left as it was.

    Batches are drawn from all training records as `edgetune tune` would hold them, directions as the method draws them,
    both under names that no training step uses.

    Raises:
        ConfigError: if the method has no perturbation radius, or parts that the test is not derived for.
        DivergenceError: as `suggest.range_test.suggest`.
    Cost: see `suggest.range_test.suggest`.
    """
    method, seed = prepared.method, prepared.recipe.seed
    if method.directions is None or method.eps is None:
        raise ConfigError(
            f"{method.name} has no perturbation radius to suggest",
            hint=f"edgetune suggest {method.name} --quick finds a learning rate; forward-only methods: mezo, fedkseed",
        )
    if not (isinstance(method.local, Sgd) and method.objective is None and prepared.lesson is None):
        raise ConfigError(
            "the range test is derived for the loss and plain sgd",
            hint=f"edgetune suggest {method.name} --quick takes them",
        )
    tuned = Worker(prepared.backbone, method, seed, RESIDENCIES[prepared.recipe.model.residency]).tuned
    if not isinstance(tuned, ProjectedTuned):
        raise ConfigError(f"{method.name} does not move all weights along directions", where="suggest")
    examples = [example for share in prepared.devices.values() for example in share]
    device = prepared.backbone.model.device

    @cache
    def batch(index: int) -> Batch:
        rows = stream(seed, "suggest", index).integers(0, len(examples), method.batch_size)
        return collate([examples[int(row)] for row in rows], prepared.pad_id).to(device)

    space, sample = BoundSpace(method.directions.kind, pool_key(seed)), sample_weights(parts_of(tuned))
    problem = Problem(
        tuned=tuned,
        objective=response_loss,
        batch=batch,
        keys=method.directions.draw(seed, 0, 0, DIRECTIONS),
        realised=cache(lambda eps: realised_perturbation(space, sample, eps, 0)),
    )
    order = [int(row) for row in stream(seed, "suggest", "probe").permutation(len(examples))[:PROBE]]
    probe = [
        collate([examples[row] for row in order[first : first + PROBE_BATCH]], prepared.pad_id).to(device)
        for first in range(0, len(order), PROBE_BATCH)
    ]
    return suggest(
        problem,
        method,
        method.directions.draw(seed, 0, 1, STEPS, method.estimate.directions),
        probe,
        steps=prepared.recipe.federation.rounds * method.local_steps,
        progress=progress,
    )
