"""One run of the comparison at equal forward passes, or the range test before it: in a process of its own.

python -m edgetune.bench.forwarding TRIAL.json
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgetune.bench.forwards import CHOOSE, DEVELOPMENT, POINTS, RANGE, Trial, local_steps
from edgetune.core.keys import stream
from edgetune.core.progress import silent
from edgetune.data.encode import Example
from edgetune.federation.single import ONLY_DEVICE
from edgetune.federation.start import Start
from edgetune.federation.steps import take_steps
from edgetune.federation.worker import Worker
from edgetune.recipe.prepare import Prepared, prepare
from edgetune.recipe.quality import model_loss, model_quality
from edgetune.recipe.recipe import Recipe, load_recipe
from edgetune.suggest.preparing import find_prepared


def recipe_of(trial: Trial) -> Recipe:
    """Return the recipe of a run; the data are the same for every seed, which fixes directions and batches alone."""
    settings = {**trial.settings, "federation.rounds": POINTS, "method.local_steps": local_steps(trial)}
    texts = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    ]
    source = {} if trial.data is None else {"data__source": trial.data}
    return load_recipe(None, texts, threads=1, model__source=trial.model, method__name=trial.method, **source)


def row_of(trial: Trial) -> dict[str, Any]:
    """Return what a trial gave: a rate and a radius of the range test, or losses by forward passes."""
    prepared = prepare(recipe_of(trial))
    train, development = divided([one for share in prepared.devices.values() for one in share])
    prepared = replace(prepared, devices={ONLY_DEVICE: train})
    if trial.phase == RANGE:
        found = find_prepared(prepared, single=True)
        return {"learning_rate": found.learning_rate, "eps": found.eps, "clear": found.clear}
    if trial.phase == CHOOSE:
        return _walked(prepared, trial.seed, development, each=False)
    base = model_quality(prepared.backbone.model, prepared, silent, "base")
    row = _walked(prepared, trial.seed, prepared.held_out_examples, each=True)
    tuned = model_quality(prepared.backbone.model, prepared, silent, "tuned")
    return {**row, "base_rouge_l": _number(base.rouge_l), "rouge_l": _number(tuned.rouge_l)}


def divided(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Split the training data: what is trained on, and a tenth by which rates are chosen; the same for every run."""
    order = stream(0, "forwards", "development").permutation(len(examples)).tolist()
    aside = set(order[: max(1, round(DEVELOPMENT * len(examples)))])
    parts: tuple[list[Example], list[Example]] = ([], [])
    for index, example in enumerate(examples):
        parts[index in aside].append(example)
    return parts


def _walked(prepared: Prepared, seed: int, judged: Sequence[Example], *, each: bool) -> dict[str, Any]:
    """Take the steps as a run on one device does; return losses on some examples, after each interval or the last."""
    method, model = prepared.method, prepared.backbone.model
    base = model_loss(model, judged, prepared)
    worker = Worker(prepared.backbone, method, seed, start=Start(prepared.sample))
    points, dropped, interval = [(0, _number(base))], 0, 0
    for interval, lost in enumerate(_intervals(prepared, worker), 1):
        dropped += lost
        if each or interval == POINTS:
            forwards = interval * method.local_steps * method.estimate.passes
            points.append((forwards, _number(model_loss(worker.tuned.model, judged, prepared))))
    loss = points[-1][1] if interval == POINTS else None
    return {
        "points": points, "base_loss": points[0][1], "loss": loss, "dropped": dropped,
        "steps": POINTS * method.local_steps, "passes": method.estimate.passes,
        "learning_rate": method.learning_rate, "eps": method.eps,
    }  # fmt: skip


def _intervals(prepared: Prepared, worker: Worker) -> Iterator[int]:
    """Yield the slopes that each interval dropped, until all are done or one had no finite loss."""
    method, tuned = prepared.method, worker.tuned
    optimiser = method.local.start(tuned)
    if optimiser:
        tuned.keep(worker.scratch)
    for interval in range(1, POINTS + 1):
        batches = worker.batches(
            prepared.devices[ONLY_DEVICE], prepared.pad_id, device=ONLY_DEVICE,
            first=(interval - 1) * method.local_steps,
        )  # fmt: skip
        steps = take_steps(
            method, tuned, batches, method.keys(worker.seed, interval, ONLY_DEVICE), optimiser,
            round=interval, objective=worker.objective,
        )  # fmt: skip
        if math.isnan(steps.loss):
            return
        tuned.reset(tuned.state())
        yield steps.dropped


def _number(value: float) -> float | None:
    """Return a number that JSON has, None for what is no number."""
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    begun = time.perf_counter()
    made = row_of(Trial(**json.loads(Path(sys.argv[1]).read_text("utf-8"))))
    seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time()}
    print(json.dumps(made | {key: round(value, 2) for key, value in seconds.items()}))
