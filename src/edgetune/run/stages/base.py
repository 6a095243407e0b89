"""Measure the base model."""

from edgetune.run.stage import Model, Stage
from edgetune.run.work import Work


def _work(work: Work, given: Model) -> Model:
    loss = work.told_again("base")
    if loss is None:
        _, quality = work.measured("base", lambda: given.model, lambda: work.base.size_bytes)
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
)
