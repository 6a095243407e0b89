"""Measure the base model."""

from edgetune.run.stage import Model, Stage
from edgetune.run.work import Work


def _work(work: Work, given: Model) -> Model:
    _, quality = work.measured("base", lambda: given.model, lambda: work.prepared.backbone.size_bytes)
    work.base_loss = quality.loss
    return given


STAGE = Stage(
    name="base",
    summary="Measures the untuned model on the held-out records.",
    cost="one forward pass and one greedy answer a held-out record",
    takes=Model,
    gives=Model,
    work=_work,
)
