"""Tune what a recipe describes: across devices or on one."""

from __future__ import annotations

import math
from hashlib import sha256
from pathlib import Path

from edgetune.core.errors import ConfigError
from edgetune.core.events import Listener
from edgetune.core.ledger import Ledger, read_ledger
from edgetune.core.progress import Progress, silent
from edgetune.core.tuned import Tuned
from edgetune.federation.buffer import Buffer
from edgetune.federation.course import Course
from edgetune.federation.device import Device
from edgetune.federation.federate import federate
from edgetune.federation.fleet import Fleet
from edgetune.federation.hands import Party
from edgetune.federation.plan import Plan
from edgetune.federation.residency import digest_of
from edgetune.federation.single import tune
from edgetune.federation.start import Start
from edgetune.federation.state import Checkpoint, check_resumable
from edgetune.federation.worker import Worker
from edgetune.recipe.prepare import Prepared
from edgetune.recipe.quality import model_answers, model_loss, rouge_of
from edgetune.recipe.recipe import Recipe
from edgetune.recipe.residency import RESIDENCIES
from edgetune.recipe.sections import FederationSection, FleetSection


def tune_prepared(
    prepared: Prepared,
    ledger_path: Path,
    *,
    listener: Listener,
    progress: Progress = silent,
    single: bool = False,
    crew: Party | None = None,
    course: Course | None = None,
) -> tuple[Ledger, Tuned]:
    """Tune, and return the ledger and the handle of the tuned model (`tune.plain_model` takes it off).

    Args:
        prepared: model, data, method.
        ledger_path: where the ledger is kept after every round.
        listener: receives one event a round.
        progress: told how far it is.
        single: one device holds all data; nothing is sent.
        crew: who lets devices answer; this process alone if not given.
        course: watches the held-out loss, so that a run that climbs goes back to its best round. What is minimised must
            be that loss.
    """
    recipe = prepared.recipe
    residency = RESIDENCIES[recipe.model.residency]
    folder, fingerprint = ledger_path.parent, _fingerprint(prepared, single)
    start = Start(prepared.sample, folder, fingerprint)
    worker = Worker(
        prepared.backbone, prepared.method, recipe.seed, residency,
        scratch=folder, start=start, lesson=prepared.lesson,
    )  # fmt: skip
    plan = _plan(recipe)
    watched = course if worker.objective is None else None
    checkpoint = Checkpoint(ledger_path, worker, fingerprint, watched)

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
            id: Device(id, share, worker, pad_id=prepared.pad_id) for id, share in prepared.devices.items()
        }
        elsewhere = crew.members if crew else None
        ledger = federate(
            worker, devices if elsewhere is None else elsewhere, plan, checkpoint, evaluate,
            answer=answer, hands=crew.enlist(devices, worker.start) if crew else None,
            listener=listener, progress=progress,
        )  # fmt: skip
    return ledger, worker.tuned


def _plan(recipe: Recipe) -> Plan:
    return Plan(
        recipe.federation.rounds,
        recipe.federation.participation,
        recipe.seed,
        recipe.evaluation.every,
        recipe.evaluation.answer_every,
        recipe.federation.over_selection,
        recipe.federation.minimum_replies,
        _fleet(recipe),
        buffer_of(recipe.federation),
    )


def buffer_of(section: FederationSection) -> Buffer | None:
    """Return how replies of earlier rounds count; None if they do not."""
    if section.buffer is None:
        return None
    return Buffer(section.buffer, section.staleness_power, section.max_staleness)


def _fleet(recipe: Recipe) -> Fleet | None:
    """Return the fleet that a recipe describes; None if it says nothing of one."""
    section = recipe.fleet
    if section == FleetSection():
        return None
    said = section.model_dump(exclude={"deadline"})
    deadline = math.inf if section.deadline is None else section.deadline
    return Fleet(recipe.seed, **said, rounds=recipe.federation.rounds, deadline=deadline)


def completed_rounds(prepared: Prepared, ledger_path: Path, *, single: bool) -> int:
    """Return how many rounds a folder already holds, after checking that this run may go on with them.

    Raises:
        ModelError: if the ledger is damaged.
        DigestError: if it was made with another base, data or configuration.
        ConfigError: if it holds more rounds than this run wants.
    """
    if not ledger_path.exists():
        return 0
    grid = RESIDENCIES[prepared.recipe.model.residency].grid
    ledger = read_ledger(ledger_path, base_digest=digest_of(prepared.backbone, grid))
    check_resumable(ledger, _fingerprint(prepared, single), ledger_path)
    wanted = prepared.recipe.federation.rounds
    if ledger.round > wanted:
        raise ConfigError(
            f"this folder holds a run of {ledger.round} rounds, more than {wanted}",
            where=ledger_path,
            hint="choose another --out",
        )
    return ledger.round


def _fingerprint(prepared: Prepared, single: bool) -> str:
    """Name everything that decides the tuned weights beside the base: settings, data, and how text becomes tokens."""
    parts = [prepared.recipe.tuning_fingerprint, prepared.manifest.identity, prepared.backbone.prompt_digest]
    parts += [prepared.method.origin] if prepared.method.origin else []
    parts += [prepared.lesson.digest] if prepared.lesson else []
    return f"{'single' if single else 'federated'}-{sha256(' '.join(parts).encode()).hexdigest()}"
