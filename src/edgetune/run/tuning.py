"""Tune what a recipe describes: across devices or on one, and hand back a plain model."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from edgetune.core.events import Listener
from edgetune.core.ledger import Ledger
from edgetune.core.progress import Progress, silent
from edgetune.core.tuned import Tuned
from edgetune.run.device import Device
from edgetune.run.federate import Plan, federate
from edgetune.run.prepare import Prepared
from edgetune.run.rows import model_answers, model_loss, rouge_of
from edgetune.run.single import tune
from edgetune.run.state import Checkpoint
from edgetune.run.worker import Worker
from edgetune.tune import AdapterTuned, ProjectedTuned


def tune_prepared(
    prepared: Prepared,
    ledger_path: Path,
    *,
    listener: Listener,
    progress: Progress = silent,
    single: bool = False,
) -> tuple[Ledger, PreTrainedModel]:
    """Tune, and return the ledger and the model with the tuned weights.

    Args:
        prepared: model, data, method.
        ledger_path: where the ledger is kept after every round.
        listener: receives one event a round.
        progress: told how far it is.
        single: one device holds all data; nothing is sent.
    """
    recipe = prepared.recipe
    worker = Worker(prepared.backbone, prepared.method, recipe.seed)
    plan = Plan(
        recipe.federation.rounds,
        recipe.federation.participation,
        recipe.seed,
        recipe.evaluation.every,
        recipe.evaluation.answer_every,
    )
    checkpoint = Checkpoint(
        ledger_path,
        worker,
        "-".join(["single" if single else "federated", recipe.tuning_fingerprint, prepared.manifest.digest]),
    )

    def evaluate(tuned: Tuned) -> float:
        return model_loss(tuned.model, prepared.held_out_examples, prepared)

    def answer(tuned: Tuned) -> float:
        return rouge_of(model_answers(tuned.model, prepared), prepared)

    if single:
        examples = [example for share in prepared.devices.values() for example in share]
        ledger = tune(
            worker, examples, plan, checkpoint, evaluate,
            pad_id=prepared.pad_id, answer=answer, listener=listener, progress=progress,
        )  # fmt: skip
    else:
        devices = {
            id: Device(id, share, worker, pad_id=prepared.pad_id, progress=progress)
            for id, share in prepared.devices.items()
        }
        ledger = federate(
            worker, devices, plan, checkpoint, evaluate, answer=answer, listener=listener, progress=progress
        )
    return ledger, plain_model(worker.tuned)


def plain_model(tuned: Tuned) -> PreTrainedModel:
    """Return the transformers model with the tuned weights in place; the handle ends here."""
    if isinstance(tuned, AdapterTuned):
        return tuned.merged()
    if isinstance(tuned, ProjectedTuned):
        tuned.close()
    model: PreTrainedModel = tuned.model  # type: ignore[assignment]
    return model
