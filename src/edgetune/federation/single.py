"""Tuning on one device: the same steps without a server."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from edgetune.core.errors import DivergenceError
from edgetune.core.events import Listener, RoundFinished
from edgetune.core.ledger import Ledger
from edgetune.core.progress import Progress, silent
from edgetune.data.encode import Example
from edgetune.federation.beside import forget_states
from edgetune.federation.pace import Pace
from edgetune.federation.plan import Plan
from edgetune.federation.state import Checkpoint, Evaluate
from edgetune.federation.steps import take_steps
from edgetune.federation.worker import Worker
from edgetune.measure.memory import PeakMemory

ONLY_DEVICE = 0


def tune(
    worker: Worker,
    examples: Sequence[Example],
    plan: Plan,
    checkpoint: Checkpoint,
    evaluate: Evaluate,
    *,
    pad_id: int,
    answer: Evaluate | None = None,
    listener: Listener,
    progress: Progress = silent,
) -> Ledger:
    """Tune on one device that holds all examples; a round is a checkpoint interval of `local_steps` steps.

    The optimiser's state lives through the whole run and is saved beside the ledger. After every interval the weights
    are those of the ledger, so that a killed and resumed run gives the same bits as an undisturbed one.

    Args:
        worker: the model.
        examples: the data.
        plan: rounds, seed, evaluation interval (participation is not used).
        checkpoint: where the ledger is kept.
        evaluate: held-out loss.
        answer: Rouge-L of answers to the held-out prompts.
        pad_id: the padding token.
        listener: receives one event an interval; payloads are empty, nothing is sent.
        progress: told after every step how far the interval and the run are.

    Raises:
        DivergenceError: if every step of an interval was dropped, or the held-out loss climbs, and no interval ended
            better than the base; else the ledger is that of the best one.
    """
    ledger = checkpoint.resume(listener)
    if checkpoint.over:
        worker.tuned.reset(ledger.update)
        return ledger
    try:
        ledger = _intervals(
            worker, examples, plan, checkpoint, evaluate, ledger,
            pad_id=pad_id, answer=answer, listener=listener, progress=progress,
        )  # fmt: skip
    except DivergenceError as error:
        forget_states(checkpoint.path, but=0)
        return checkpoint.back(worker.tuned, listener, error)
    checkpoint.finish()
    return ledger


def _intervals(
    worker: Worker,
    examples: Sequence[Example],
    plan: Plan,
    checkpoint: Checkpoint,
    evaluate: Evaluate,
    ledger: Ledger,
    *,
    pad_id: int,
    answer: Evaluate | None,
    listener: Listener,
    progress: Progress,
) -> Ledger:
    """Do the intervals after those of a ledger."""
    method, tuned = worker.method, worker.tuned
    tuned.reset(ledger.update)
    optimiser = method.local.start(tuned)
    optimiser = checkpoint.memory(ledger, optimiser, method.pool_size)
    forget_states(checkpoint.path, but=ledger.round)
    pace = Pace(progress, "intervals", plan.rounds)
    pace.begin(ledger.round)
    for round in range(ledger.round + 1, plan.rounds + 1):
        start = time.perf_counter()
        with PeakMemory() as memory:
            keys = method.keys(plan.seed, round, ONLY_DEVICE)
            if optimiser:
                tuned.keep(worker.scratch)  # its steps move directions again, which the ledger adds up
            first = (round - 1) * method.local_steps
            batches = worker.batches(examples, pad_id, device=ONLY_DEVICE, first=first)
            steps = take_steps(
                method, tuned, batches, keys, optimiser,
                round=round, objective=worker.objective, progress=pace.step,
            )  # fmt: skip
            if math.isnan(steps.loss):
                raise DivergenceError(
                    f"every loss of interval {round} was NaN or infinite", hint="lower the learning rate"
                )
            tuned.reset(tuned.state())
            realised = worker.watch.ratio(tuned.state())
            last = round == plan.rounds
            loss = evaluate(tuned) if plan.due(round, plan.evaluate_every) else None
            rouge = answer(tuned) if answer and plan.due(round, plan.answer_every) else None
            state = tuned.state()
            if not state.is_bounded:
                what = f"the steps of interval {round} are beyond any use"
                raise DivergenceError(what, hint="lower the learning rate")
            ledger = checkpoint.remember(checkpoint.ledger(state, round, tuned if last else None), optimiser)
        done = RoundFinished(
            round, [ONLY_DEVICE], math.nan if method.private else steps.loss, loss, [], [],
            0 if method.private else steps.dropped, ledger.digest,
            time.perf_counter() - start, memory.peak_bytes, rouge, realised=realised,
        )  # fmt: skip
        checkpoint.close(ledger, done, listener)
        forget_states(checkpoint.path, but=round)
        pace.begin(round)
    return ledger
