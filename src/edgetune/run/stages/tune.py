"""Tune across devices or on one, measure, and sum up what was sent."""

from __future__ import annotations

import math

from transformers import PreTrainedModel

from edgetune.core.errors import DivergenceError
from edgetune.core.ledger import Ledger
from edgetune.core.update import Projected
from edgetune.federation.traffic import alternatives, traffic
from edgetune.federation.tuning import tune_prepared
from edgetune.run.stage import Model, Stage
from edgetune.run.work import LEDGER, Work


def _work(work: Work, given: Model) -> Model:
    others = {} if work.single else alternatives(work.prepared.backbone)
    path, ledgers, course = work.out / LEDGER, list[Ledger](), work.course()
    earlier = sum(one["seconds"] for one in work.rounds() if one["round"] <= work.done)

    def tune() -> PreTrainedModel:
        ledger, model = tune_prepared(
            work.prepared, path,
            listener=work.tell, progress=work.progress, single=work.single, crew=work.crew, course=course,
        )  # fmt: skip
        work.crew.close()
        ledgers.append(ledger)
        return model

    def of_all_processes() -> int:
        now = (one["peak_memory_bytes"] for one in work.rounds() if one["round"] > work.done)
        return max(now, default=0)

    model, quality = work.measured(
        "tuned",
        tune,
        lambda: work.prepared.backbone.size_bytes + path.stat().st_size,
        earlier=earlier,
        peak=of_all_processes,
    )
    if not work.single:
        work.tell(traffic(work.rounds(), others))
    _refuse_useless(work, Model(model, ledgers[0]), quality.loss)
    return Model(model, ledgers[0])


def _refuse_useless(work: Work, tuned: Model, loss: float) -> None:
    """Refuse a model that is no better than chance, or that no step changed.

    Raises:
        DivergenceError: saying which.
    """
    chance = math.log(tuned.model.config.vocab_size)
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
)
