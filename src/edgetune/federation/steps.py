"""The local steps of one device: the only training loop there is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from edgetune.core.batch import Batch, Objective, response_loss
from edgetune.core.progress import Progress, silent
from edgetune.core.tuned import Tuned
from edgetune.core.update import Projected, Update
from edgetune.data.sampling import draw_batches
from edgetune.methods.method import TuningMethod

__all__ = ["Steps", "draw_batches", "take_steps"]


@dataclass(frozen=True, slots=True)
class Steps:
    """What the local steps gave.

    Args:
        loss: mean objective (nats if it is the loss) of the steps that counted; NaN if none did.
        dropped: slopes (or gradients) dropped because a loss or an estimate was NaN or infinite.
        slopes: those that counted, in the order of the steps; nothing of gradients.
    """

    loss: float
    dropped: int
    slopes: Projected


def take_steps(
    method: TuningMethod,
    tuned: Tuned,
    batches: Iterator[Batch],
    keys: Sequence[int],
    optimiser: dict[str, torch.Tensor],
    *,
    round: int = 1,
    state: Update | None = None,
    objective: Objective | None = None,
    progress: Progress = silent,
    label: str = "steps",
) -> Steps:
    """Take local steps, each along as many keys as the estimator takes directions.

    What is NaN or infinite is dropped and counted: a slope leaves its step, and a step without a finite slope (or with
    such a gradient) leaves the weights as they were.

    Args:
        method: names the estimator and the optimiser.
        tuned: the handle that moves.
        batches: one is taken a step.
        keys: directions, `method.estimate.directions` a step (any numbers for dense methods).
        optimiser: the local optimiser's state, changed in place.
        round: the round (or checkpoint interval), from 1: where on the schedule the steps are.
        state: what the round starts from.
        objective: what to minimise; the loss on responses if not given.
        progress: told after every step.
        label: name of the progress bar.
    """
    device = next(tuned.model.parameters()).device
    losses, dropped, each, estimator = [], 0, method.estimate.directions, method.estimator
    slopes: list[Projected] = []
    steps, objective = len(keys) // each, objective or response_loss
    for step in range(steps):
        taken = keys[step * each : (step + 1) * each]
        estimate = estimator(tuned, objective, next(batches).to(device), *taken)
        if estimate.is_finite:
            taken_along = method.weighed(estimate.update, state)
            method.local.step(tuned, taken_along, optimiser, method.rate(round, step))
            losses.append(estimate.loss)
            slopes += [estimate.update] if isinstance(estimate.update, Projected) else []
            dropped += estimate.dropped
        else:
            dropped += each
        progress(label, step + 1, steps)
    return Steps(sum(losses) / len(losses) if losses else math.nan, dropped, Projected.chain(slopes))
