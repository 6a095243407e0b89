"""A federation in one process: the same server and device code that a network engine runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from edgetune.core.errors import DivergenceError
from edgetune.core.events import Listener, RoundFinished
from edgetune.core.ledger import Ledger
from edgetune.core.progress import Progress, silent
from edgetune.federation.beside import FLIGHT, forget_states
from edgetune.federation.device import Device
from edgetune.federation.exchange import Exchanges
from edgetune.federation.flight import Flight
from edgetune.federation.hands import Alone, Hands, Member
from edgetune.federation.pace import Pace
from edgetune.federation.plan import Plan
from edgetune.federation.server import Server
from edgetune.federation.state import Checkpoint, Evaluate
from edgetune.federation.tickets import Tickets
from edgetune.federation.worker import Worker
from edgetune.measure.memory import PeakMemory
from edgetune.recipe.asking import asked_for


def federate(
    worker: Worker,
    devices: Mapping[int, Member],
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
        devices: by id; those of this process answer here if no hands are given.
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
    if checkpoint.over:
        worker.tuned.reset(ledger.update)
        return ledger
    kept = checkpoint.under_way(ledger) if buffer else {}
    flight = Flight(buffer, plan.fleet.deadline if plan.fleet else math.inf, kept) if buffer else None
    server = _server(
        worker, devices, plan, checkpoint, ledger, Tickets(buffer.oldest, kept) if buffer else None
    )
    hands = hands or Alone({id: one for id, one in devices.items() if isinstance(one, Device)})
    exchanges = Exchanges(server, devices, plan, hands, flight)
    pace = Pace(progress, "rounds", plan.rounds)
    pace.begin(server.round, len(server.sample()))
    try:
        while server.round < plan.rounds and not checkpoint.over:
            start = time.perf_counter()
            with PeakMemory() as memory:
                made = exchanges.round(pace)
                worker.tuned.reset(server.state)
                realised = worker.watch.ratio(server.state)
                loss = evaluate(worker.tuned) if plan.due(server.round, plan.evaluate_every) else None
                rouge = answer(worker.tuned) if answer and plan.due(server.round, plan.answer_every) else None
                ledger = _ledger(worker, server, plan, checkpoint, flight)
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
            hands.closed(server.round)
            checkpoint.close(ledger, done, listener)
            forget_states(checkpoint.path, but=server.round)
            pace.begin(server.round, len(made.down))
    except DivergenceError as error:
        forget_states(checkpoint.path, but=0)
        return checkpoint.back(worker.tuned, listener, error)
    worker.tuned.reset(server.state)
    checkpoint.finish()
    return ledger


def _server(
    worker: Worker,
    devices: Mapping[int, Member],
    plan: Plan,
    checkpoint: Checkpoint,
    ledger: Ledger,
    tickets: Tickets | None,
) -> Server:
    """Return the server as it stood after a ledger's round."""
    examples = {id: device.examples for id, device in devices.items() if device.examples}
    return Server(
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
        buffer=plan.buffer,
        tickets=tickets,
    )


def _ledger(
    worker: Worker, server: Server, plan: Plan, checkpoint: Checkpoint, flight: Flight | None
) -> Ledger:
    """Return the ledger of the round that was closed, once everything that stands beside it is written."""
    last = server.round == plan.rounds
    ledger = checkpoint.ledger(server.state, server.round, worker.tuned if last else None)
    ledger = checkpoint.remember(ledger, server.memory)
    if flight is not None:
        ledger = checkpoint.remember(ledger, flight.state | server.tickets.state, FLIGHT)
    return ledger
