"""A cautious learning rate for gradients, from the optimiser's own first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.errors import DivergenceError
from edgetune.core.keys import stream
from edgetune.core.tuned import Tuned
from edgetune.core.update import Dense, Projected, Update
from edgetune.methods.method import TuningMethod
from edgetune.suggest.quick import HORIZON, WANDERED, Quick, two_digits

PAIRS, RECORDS = 2, 4
"""Pairs of independent batches, and records on which a step is judged."""
RUNGS = 8
"""Rates that are tried one way, each four times the last."""


def find_rate(
    tuned: Tuned,
    method: TuningMethod,
    objective: Objective,
    batch: Callable[[int, int], Batch],
    *,
    steps: int,
    seed: int,
) -> Quick:
    """Take a share of the rate at which the optimiser's first step wins most on other records.

        lr = min(c R, r / (m sqrt(T))),   R = argmin_lr L_b(step of lr along the gradient of batch a)

    c is the optimiser's caution, 1/8 of AdamW and 1/2 of SGD; m is how far a step of rate 1 moves a weight, which is 1
    of AdamW and the gradient's size of SGD; r is how far all of them may move at random before the loss rises by a
    tenth, T the steps. The smallest R of the pairs (a, b) counts, and the largest m.

    Args:
        tuned: the handle, at its base; left there.
        method: gives estimator, optimiser and the rate to begin with.
        objective: what is minimised.
        batch: (number of the batch, its records) to training records; a pure function.
        steps: steps that one device's weights take.
        seed: of the random moves.

    Raises:
        DivergenceError: if the loss is NaN or infinite, or no rate lowers it.
    Cost: two gradients of a training batch, some 14 forward passes of 4 records for their rates, 6 for r.
    Source: measured, see docs/log.md: on stories260K R is 0.01; 0.001 to 0.01 learn, 0.03 does not.
    """
    spent, best, moved = 0, list[float](), list[float]()

    @torch.no_grad()
    def loss(other: Batch) -> float:
        nonlocal spent
        spent += len(other.input_ids)
        return float(objective(tuned.model, other))

    for pair in range(PAIRS):
        tuned.reset(None)
        given, other = batch(2 * pair, method.batch_size), batch(2 * pair + 1, RECORDS)
        estimate = method.estimator(tuned, objective, given, 0)
        spent += 3 * len(given.input_ids)
        if not estimate.is_finite:
            raise DivergenceError(
                "the loss of the untuned model is NaN or infinite", hint="check model, data and model.dtype"
            )

        moved.append(method.local.reach(estimate.update))
        after = partial(_after, tuned, method, estimate.update, partial(loss, other))
        best.append(_lowest(after, method.learning_rate, loss(other)))
    found = min(best)
    if found == 0:
        raise DivergenceError(
            "no rate of a first step lowers the loss of other records",
            hint="use a larger method.batch_size or other data",
        )
    move = max(moved)
    reach = _reach(tuned, found * move, loss, batch, _walk(tuned, method.pool_size, seed))
    tuned.reset(None)
    rate = min(method.local.caution * found, reach / (move * math.sqrt(max(steps, HORIZON))))
    return Quick(two_digits(rate), None, clear=True, records=spent)


def _after(
    tuned: Tuned, method: TuningMethod, estimate: Update, loss: Callable[[], float], rate: float
) -> float:
    """Return the loss after the optimiser's first step from the base, infinite where it is no number."""
    tuned.reset(None)
    optimiser = method.local.with_option("learning_rate", rate)
    optimiser.step(tuned, estimate, optimiser.start(tuned))
    found = loss()
    return found if math.isfinite(found) else math.inf


def _lowest(after: Callable[[float], float], rate: float, start: float) -> float:
    """Return the rate of the lowest loss on a ladder of fours, or 0 if none is below the start."""
    first = after(rate)
    factor = 4.0 if first < start else 0.25
    lowest, at = (first, rate) if first < start else (start, 0.0)
    for _ in range(RUNGS):
        rate *= factor
        here = after(rate)
        if here < lowest:
            lowest, at = here, rate
        elif factor > 1 or at:
            break
    return at


def _reach(
    tuned: Tuned,
    radius: float,
    loss: Callable[[Batch], float],
    batch: Callable[[int, int], Batch],
    walk: Callable[[float, int], Update],
) -> float:
    """Return how far all weights may move at random, by the square law through one radius."""
    rises, levels = list[float](), list[float]()
    for line in range(PAIRS):
        other, found = batch(2 * PAIRS + line, RECORDS), list[float]()
        for scale in (radius, 0.0, -radius):
            tuned.reset(None)
            tuned.apply(walk(scale, line))
            found.append(loss(other))
        levels.append(found[1])
        rises.append(abs((found[0] + found[2]) / 2 - found[1]))
    most, rise = WANDERED * abs(sum(levels)), sum(rises)
    if not math.isfinite(rise):
        return radius / 8
    return radius * min(8.0, math.sqrt(most / rise)) if rise else 8 * radius


def _walk(tuned: Tuned, pool: int, seed: int) -> Callable[[float, int], Update]:
    """Return what moves all weights at random by some distance, root mean square: (distance, number of the move)."""

    def signs(line: int, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        drawn = stream(seed, "suggest", "signs", line, name).integers(0, 2, shape)
        return (2 * drawn - 1).astype(np.float32)

    def along_pool(distance: float, line: int) -> Update:
        each = np.float32(distance / math.sqrt(pool))
        return Projected(np.arange(pool, dtype=np.int64), each * signs(line, "pool", (pool,)))

    def everywhere(distance: float, line: int) -> Update:
        return Dense({
            name: distance * torch.from_numpy(signs(line, name, tuple(weight.shape))).to(weight)
            for name, weight in tuned.named_weights()
        })  # fmt: skip

    return along_pool if pool else everywhere
