"""Measure the base model."""

from contextlib import nullcontext

from edgetune.recipe.computing import computing
from edgetune.run.stage import Model, Stage
from edgetune.run.work import Work


def _work(work: Work, given: Model) -> Model:
    loss = work.told_again("base")
    if loss is None:
        held = work.base.base is None
        with nullcontext(given.model) if held else computing(work.base, work.prepared.method) as model:
            _, quality = work.measured("base", lambda: model, lambda: work.base.size_bytes)
        loss = quality.loss
    work.base_loss = loss
    return given


STAGE = Stage(
    name="base",
    summary="Measures the untuned model on the held-out records.",
    cost="one forward pass and one greedy answer a held-out record; nothing where a run goes on",
    takes=Model,
    gives=Model,
    work=_work,
    matrices=False,
)
