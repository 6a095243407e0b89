"""A federation in one process: the same server and device code that a network engine runs."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edgetune.core.errors import DivergenceError
from edgetune.core.events import Listener, RoundFinished
from edgetune.core.ledger import Ledger
from edgetune.core.progress import Progress, silent
from edgetune.federation.beside import FLIGHT, forget_states
from edgetune.federation.buffer import Buffer
from edgetune.federation.device import Device
from edgetune.federation.fleet import ABSENT, Fates, Fleet
from edgetune.federation.flight import Flight
from edgetune.federation.hands import Alone, Hands, Task
from edgetune.federation.pace import Pace
from edgetune.federation.server import Closed, Server
from edgetune.federation.state import Checkpoint, Evaluate
from edgetune.federation.tickets import Tickets
from edgetune.federation.turns import Turns
from edgetune.federation.worker import Worker
from edgetune.measure.memory import PeakMemory
from edgetune.recipe.asking import asked_devices, asked_for


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how wide a federation runs.

    Args:
        rounds: number of rounds, at least 1.
        participation: share of the devices asked in a round, in (0, 1].
        seed: master seed.
        evaluate_every: rounds between held-out losses, at least 1; the last round always has one.
        answer_every: rounds between Rouge-L measurements; 0 for none.
        over_selection: devices asked beyond those that are needed, as a share of them.
        minimum: usable replies without which a round changes nothing, at least 1.
        fleet: how the devices behave; all answer at once if not given.
        buffer: replies that a step takes, of whichever rounds; a round waits for its own if not given.
    """

    rounds: int
    participation: float
    seed: int
    evaluate_every: int = 1
    answer_every: int = 0
    over_selection: float = 0.0
    minimum: int = 1
    fleet: Fleet | None = None
    buffer: Buffer | None = None

    def fates(self, round: int, asked: Sequence[int], devices: int, steps: int) -> Fates:
        """Return who of the devices asked in a round answers, with a buffer in whichever round."""
        fleet = self.fleet or Fleet(self.seed)
        if self.buffer is not None:
            return replace(fleet, deadline=math.inf).fates(round, asked, len(asked), steps)
        return fleet.fates(round, asked, asked_devices(devices, self.participation), steps)

    def due(self, round: int, every: int) -> bool:
        """Say whether a round is measured: every so many rounds and after the last; never if `every` is 0."""
        return every > 0 and (round % every == 0 or round == self.rounds)


def federate(
    worker: Worker,
    devices: Mapping[int, Device],
    plan: Plan,
    checkpoint: Checkpoint,
    evaluate: Evaluate,
    *,
    answer: Evaluate | None = None,
    hands: Hands | None = None,
    listener: Listener,
    progress: Progress = silent,
) -> Ledger:
    """Run the rounds and return the ledger, that of the best round if the run diverges.

    A killed run goes on after its last complete round.

    Args:
        worker: the model that all devices of this process share.
        devices: by id.
        plan: rounds, participation, seed.
        checkpoint: where the ledger is kept.
        evaluate: held-out loss, computed on the server.
        answer: Rouge-L of answers to the held-out prompts, computed on the server.
        hands: who lets devices answer; one after the other in this process if not given.
        listener: receives one event a round.
        progress: told after every step of a device how far it is, and how far the rounds are.

    Raises:
        DivergenceError: if no device of a round sent a finite update, or the held-out loss climbs, and no round is
            better than the base.
    """
    ledger, buffer = checkpoint.resume(listener), plan.buffer
    kept = checkpoint.under_way(ledger) if buffer else {}
    flight = Flight(buffer, plan.fleet.deadline if plan.fleet else math.inf, kept) if buffer else None
    examples = {id: device.examples for id, device in devices.items()}
    server = Server(
        worker.method,
        worker.identity,
        list(devices),
        participation=asked_for(len(devices), plan.participation, plan.over_selection),
        seed=plan.seed,
        state=ledger.update,
        minimum=plan.minimum,
        round=ledger.round,
        examples=examples,
        memory=checkpoint.memory(ledger, worker.method.remembered(ledger.update, worker.layers, examples)),
        layers=worker.layers,
        initial=worker.initial,
        buffer=buffer,
        tickets=Tickets(buffer.oldest, kept) if buffer else None,
    )
    hands = hands or Alone(devices)
    turns = Turns(list(devices), server.participation, seed=plan.seed)
    pace = Pace(progress, "rounds", plan.rounds)
    pace.begin(server.round, len(server.sample()))
    held: dict[int, int] = {}
    try:
        while server.round < plan.rounds and not checkpoint.over:
            start = time.perf_counter()
            with PeakMemory() as memory:
                made = _exchange(server, plan, hands, turns, held, len(devices), pace, flight)
                worker.tuned.reset(server.state)
                realised = worker.watch.ratio(server.state)
                last = server.round == plan.rounds
                loss = evaluate(worker.tuned) if plan.due(server.round, plan.evaluate_every) else None
                rouge = answer(worker.tuned) if answer and plan.due(server.round, plan.answer_every) else None
                ledger = checkpoint.ledger(server.state, server.round, worker.tuned if last else None)
                ledger = checkpoint.remember(ledger, server.memory)
                if flight is not None:
                    ledger = checkpoint.remember(ledger, flight.state | server.tickets.state, FLIGHT)
            done = RoundFinished(
                round=server.round,
                loss=loss,
                digest=ledger.digest,
                seconds=time.perf_counter() - start,
                peak_memory_bytes=memory.peak_bytes + hands.beside_bytes,
                rouge_l=rouge,
                realised=realised,
                processes=hands.processes,
                simulated_seconds=made.fates.seconds if plan.fleet else None,
                under_way=len(flight.devices) if flight else 0,
                **made.told(),
            )
            checkpoint.close(ledger, done, listener)
            forget_states(checkpoint.path, but=server.round)
            pace.begin(server.round, len(made.down))
    except DivergenceError as error:
        forget_states(checkpoint.path, but=0)
        return checkpoint.back(worker.tuned, listener, error)
    worker.tuned.reset(server.state)
    checkpoint.finish()
    return ledger


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What a round's messages were, and what came of them."""

    down: dict[int, bytes]
    up: dict[int, bytes]
    fates: Fates
    closed: Closed
    before: dict[int, bytes]
    chosen: dict[int, bytes]
    layers: dict[str, list[int]]

    def told(self) -> dict[str, Any]:
        """Return what a round's event says of it."""
        closed = self.closed
        return {
            "devices": list(self.down),
            "train_loss": closed.loss,
            "payload_up_bytes": [
                len(self.before.get(id, b"")) + len(self.up.get(id, b""))
                for id in self.down
                if id in self.before or id in self.up
            ],
            "payload_down_bytes": [
                len(payload) + len(self.chosen.get(id, b""))
                for id, payload in self.down.items()
                if self.fates.unanswered.get(id) != ABSENT
            ],
            "dropped": closed.dropped,
            "refused": list(closed.refused),
            "reasons": list(closed.refused.values()),
            "unanswered": dict(Counter(self.fates.unanswered.values())),
            "void": closed.void,
            "aggregation_residual": closed.residual,
            "layers": self.layers,
            "staleness": list(closed.staleness),
        }


def _exchange(
    server: Server,
    plan: Plan,
    hands: Hands,
    turns: Turns,
    held: dict[int, int],
    devices: int,
    pace: Pace,
    flight: Flight | None,
) -> _Exchange:
    """Let a round's devices answer, and close it; who was heard holds the state that it received from then on."""
    down, coming = server.open_round(held, flight.devices if flight else ()), server.round + 1
    fates = plan.fates(coming, list(down), devices, server.method.local_steps)
    tasks = [Task(id, down[id], turns.before(id, coming), server.recall(down[id])) for id in fates.answering]
    before, chosen = _chosen(server, hands, tasks)
    if chosen is not None:
        tasks = [replace(task, choice=chosen[task.device]) for task in tasks if task.device in chosen]
    up = hands.answer(tasks, pace.step)
    held |= dict.fromkeys(up, server.round)
    if flight is not None:
        up, seconds = flight.landed(up, fates.times, coming)
        fates = replace(fates, seconds=seconds)
    return _Exchange(down, up, fates, server.close_round(up), before, chosen or {}, server.chosen)


def _chosen(
    server: Server, hands: Hands, tasks: Sequence[Task]
) -> tuple[dict[int, bytes], dict[int, bytes] | None]:
    """Return what devices sent before the round, and the server's answers to it; None where there are none."""
    before = hands.answer([replace(task, survey=True) for task in tasks]) if server.surveys else {}
    return before, server.choose(before)
