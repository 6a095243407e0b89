"""Tune across devices or on one, measure, and sum up what was sent."""

from __future__ import annotations

import math
from typing import cast

from transformers import PreTrainedModel

from edgetune.core.errors import DivergenceError
from edgetune.core.update import Projected
from edgetune.federation.traffic import alternatives, traffic
from edgetune.federation.tuning import tune_prepared
from edgetune.run.stage import Model, Stage
from edgetune.run.work import LEDGER, Work
from edgetune.tune import plain_model


def _work(work: Work, given: Model) -> Model:
    others = {} if work.single else alternatives(work.prepared.backbone)
    path, done, course = work.out / LEDGER, list[Model](), work.course()
    earlier = sum(one["seconds"] for one in work.rounds() if one["round"] <= work.done)

    def tune() -> PreTrainedModel:
        ledger, tuned = tune_prepared(
            work.prepared, path,
            listener=work.tell, progress=work.progress, single=work.single, crew=work.crew, course=course,
        )  # fmt: skip
        work.crew.close()
        if work.prepared.backbone.base is None:
            done.append(Model(plain_model(tuned), ledger))
        else:
            running = cast(PreTrainedModel, tuned.model)
            done.append(Model(running, ledger, lambda: plain_model(tuned)))
        return done[0].running

    def of_all_processes() -> int:
        now = (one["peak_memory_bytes"] for one in work.rounds() if one["round"] > work.done)
        return max(now, default=0)

    _, quality = work.measured(
        "tuned",
        tune,
        lambda: work.prepared.backbone.size_bytes + path.stat().st_size,
        earlier=earlier,
        peak=of_all_processes,
    )
    if not work.single:
        work.tell(traffic(work.rounds(), others))
    _refuse_useless(work, done[0], quality.loss)
    return done[0]


def _refuse_useless(work: Work, tuned: Model, loss: float) -> None:
    """Refuse a model that is no better than chance, or that no step changed.

    Raises:
        DivergenceError: saying which.
    """
    chance = math.log(tuned.running.config.vocab_size)
    hint = f"edgetune suggest {work.prepared.method.name} finds a learning rate for this model and data"
    if not loss < chance and work.base_loss < chance:
        raise DivergenceError(
            f"the tuned model is no better than chance: held-out loss {loss:.3f}", hint=hint
        )
    update = tuned.ledger.update if tuned.ledger else None
    still = isinstance(update, Projected) and not update.coefficients.any()
    if still and all(one.get("void") for one in work.rounds()):
        raise DivergenceError(
            "no round had the replies that it needs",
            hint="lower federation.minimum_replies, or ask more devices (federation.over_selection)",
        )
    if still and work.prepared.method.holds:
        raise DivergenceError(
            "the server took no step: it still gathers slopes, or each was zero",
            hint="run more rounds, or for a paced server raise method.variance_threshold or lower method.most_slopes",
        )
    if still and work.prepared.method.learning_rate > 0:
        raise DivergenceError(
            "no step changed anything: every slope was zero", hint="raise --set method.eps=..."
        )


STAGE = Stage(
    name="tune",
    summary="Tunes on the devices' records and writes the ledger.",
    cost="the method's: `edgetune methods NAME`",
    takes=Model,
    gives=Model,
    work=_work,
    matrices=False,
)
