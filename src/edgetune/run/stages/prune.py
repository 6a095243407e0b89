"""Prune in structures: before tuning the pruned folder is the run's base, after it the tuned model gets smaller."""

import time

from transformers import PreTrainedModel

from edgetune.models.saving import save_model
from edgetune.models.stored import stored_size
from edgetune.run.deploy import refuse_unmerged
from edgetune.run.names import PRUNED
from edgetune.run.pruned_base import pruned_event
from edgetune.run.pruning import Weighing, prune_prepared
from edgetune.run.stage import Model, Stage
from edgetune.run.work import Work


def _work(work: Work, given: Model) -> Model:
    if work.dense is not None:  # the base was pruned before anything else began
        return _as_base(work)
    start, prepared = time.perf_counter(), work.prepared
    refuse_unmerged(given.model)
    weighing = Weighing(prepared, given.model, work.progress, answers=False)

    def prune() -> PreTrainedModel:
        model = prune_prepared(
            prepared, given.model, listener=work.tell, progress=work.progress, weigh=weighing
        )
        if work.plan is None:  # nothing else would be left of it
            save_model(model, prepared.backbone.tokenizer, work.out / PRUNED, words=prepared.backbone.folder)
        work.reshape(model)
        return model

    def size() -> int:
        if work.plan is None:
            return stored_size(work.out / PRUNED)
        return sum(one.numel() * one.element_size() for one in work.prepared.backbone.model.parameters())

    model, _ = work.measured("pruned", prune, size)
    work.tell(pruned_event(prepared, weighing.steps, time.perf_counter() - start, ""))
    return Model(model, given.ledger)


def _as_base(work: Work) -> Model:
    backbone = work.prepared.backbone
    work.dense = None
    loss = work.told_again("pruned")
    if loss is None:
        _, quality = work.measured(
            "pruned", lambda: backbone.model, lambda: backbone.size_bytes, earlier=work.earlier
        )
        loss = quality.loss
    work.base_loss = loss  # what is tuned has to do better than this
    return Model(backbone.model)


STAGE = Stage(
    name="prune",
    summary="Takes heads, channels or sub-modules out; before tuning that is the base, after it the tuned model.",
    cost="a copy of the model and some passes over the calibration text; a recovery trains",
    takes=Model,
    gives=Model,
    work=_work,
)
