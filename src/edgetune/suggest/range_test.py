"""Suggest a learning rate and a perturbation radius for a forward-only method: the range test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from edgetune.core.batch import Batch
from edgetune.core.errors import DivergenceError
from edgetune.core.progress import Progress, silent
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.suggest.probe import (
    Problem,
    Radius,
    Slopes,
    choose_radius,
    measure_reach,
    measure_slopes,
    scan_radii,
)

LOOKS, DIRECTIONS, STEPS = 8, 32, 48
"""Directions a radius, directions for the slopes, steps of a trial."""
LOW, MIDDLE, HIGH = 0.25, 1.0, 4.0
"""Rates that are tried first, relative to the one the slopes give."""
TRIALS = 5
"""Trials with one direction a step at most: the three, and the two beside the best of them."""
HORIZON = 1000
"""Steps that a rate must survive, whatever is planned: a run that goes well is prolonged."""
SAME = 0.9
"""Of the rates that reach this share of the best decrease, the smallest is taken."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A few dozen steps at one rate: the loss on the probe batches afterwards, NaN if it diverged."""

    learning_rate: float
    loss: float
    dropped: int


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the range test found.

    Args:
        learning_rate, eps: to be used.
        clear: whether the slope is clear of the rounding noise at that radius; False is worth a warning.
        radii: what was seen at each radius.
        slopes: statistics for the rate.
        start_loss: loss on the probe batches before any step.
        trials: the verified rates, ascending.
        steps: steps that the limit is for: those planned, at least HORIZON.
        reach: how far its random walk may move the weights (`measure_reach`).
        limit: the greatest rate at which it stays within that reach; no higher rate is tried.
        single: the rate of the best single step along one direction.
    """

    learning_rate: float
    eps: float
    clear: bool
    radii: tuple[Radius, ...]
    slopes: Slopes
    start_loss: float
    trials: tuple[Trial, ...]
    steps: int
    reach: float
    limit: float
    single: float


def suggest(
    problem: Problem,
    method: TuningMethod,
    trial_keys: Sequence[int],
    probe: Sequence[Batch],
    *,
    steps: int,
    progress: Progress = silent,
) -> Suggestion:
    """Find a radius clear of noise and free of curvature, a rate from the slopes, and verify the rate by short trials.

        lr0 = min(n E[g_a g_b] / E[g_a^2 z'H z], reach sqrt(n) / (rms(g) sqrt(max(steps, HORIZON))))

    in units of the estimate (`Estimator.scale`). n is the number of directions that a step averages. Its curvature is
    E[g_i^2 z_i'H z_i] / n and a part of pairs, between 0 and as much as that of one direction, which cannot be measured
    in a few passes: the best rate lies between that of one direction and n times it. Trials begin at the upper end and
    go down as far as it takes. A weight walks by the mean of n independent signs times slopes, 1 / sqrt(n) of one.

    Deterministic: a function of the problem, the method and the keys. Training batches only; nothing held out is read.

    Args:
        problem: model, loss, batches, at least DIRECTIONS keys.
        method: takes the trial steps, with its own estimator and optimiser.
        trial_keys: directions of a trial's steps, as many a step as the method takes; the same for every rate.
        probe: training batches on which the trials are compared.
        steps: planned steps of the run, at least 1.
        progress: told how far it is.

    Returns:
        The settings with everything that led to them; the handle is back at its base.

    Raises:
        DivergenceError: if the loss is NaN or infinite, no radius moves it, or no trial lowers it.
    Cost: about 10 radii x 8 directions x 6 forward passes, 32 directions x 10, some 5 x 8 x 3 for the reach, and at
        most 5 + log2(n) trials of 48 steps and one pass over the probe: about 1,400 forward passes of a training batch
        for one direction.
    Source: reference rule of doubling eps until |L+ - L-| exceeds 10 times the noise; rate derived in `measure_slopes`.
    """
    many = method.estimate.directions
    stages, horizon = 2 + TRIALS + math.ceil(math.log2(many)), max(steps, HORIZON)
    try:
        radii = scan_radii(problem, LOOKS)
        radius, top, clear = choose_radius(radii)
        progress("range test", 1, stages)
        slopes = measure_slopes(problem, radius, top, DIRECTIONS)
        reach = measure_reach(problem, top, LOOKS)
        size = math.hypot(slopes.mean, math.sqrt(slopes.variance))
        unit = method.estimate.scale(size)
        limit, single = unit * reach / (size * math.sqrt(horizon / many)), unit * slopes.rate
        centre = min(single * many, limit)
        progress("range test", 2, stages)
        eps = _two_digits(radius.eps)
        start, done = _mean_loss(problem, probe), dict[float, Trial]()

        def attempt(factor: float) -> float:
            if factor not in done:
                rate = _two_digits(factor * centre)
                chosen = with_options(method, {"learning_rate": rate, "eps": eps})
                done[factor] = _try(problem, chosen, rate, trial_keys, probe)
                progress("range test", min(2 + len(done), stages - 1), stages)
            return done[factor].loss if math.isfinite(done[factor].loss) else math.inf

        _bracket(attempt, limit / centre, min(1.0, single / centre))
        progress("range test", stages, stages)
    finally:
        problem.tuned.reset(None)
    trials = tuple(done[factor] for factor in sorted(done))
    return Suggestion(
        _choose(trials, start), eps, clear, tuple(radii), slopes, start, trials, horizon, reach, limit, single
    )


def _bracket(attempt: Callable[[float], float], highest: float, single: float) -> None:
    """Try rates around 1: 1/4 and 1, 4 only if 1 did better, then both sides of the best; none above `highest`.

    Halves go on being tried while they do better and are not below a quarter of `single`, the rate of one direction.

    The rate of the best single step is too large for many: what it wins along the steepest directions it then adds as
    noise along all others, so that the best of the trials is mostly 1/4 or 1/2.
    """
    losses = {LOW: attempt(LOW), MIDDLE: attempt(MIDDLE)}
    if losses[MIDDLE] < losses[LOW] and highest >= HIGH:
        losses[HIGH] = attempt(HIGH)
    best = min(losses, key=lambda factor: losses[factor])
    if best * 2 <= highest:
        attempt(best * 2)
    while attempt(best / 2) <= attempt(best) and best / 4 >= LOW * single:
        best /= 2


def _try(
    problem: Problem, method: TuningMethod, rate: float, keys: Sequence[int], probe: Sequence[Batch]
) -> Trial:
    """Take steps from the base; a step whose estimate is NaN or infinite is dropped, as in training."""
    tuned, dropped, each = problem.tuned, 0, method.estimate.directions
    tuned.reset(None)
    optimiser, estimator = method.local.start(tuned), method.estimator
    for step in range(len(keys) // each):
        taken = keys[step * each : (step + 1) * each]
        estimate = estimator(tuned, problem.objective, problem.batch(step), *taken)
        if estimate.is_finite:
            method.local.step(tuned, estimate.update, optimiser)
            dropped += estimate.dropped
        else:
            dropped += each
    return Trial(rate, _mean_loss(problem, probe), dropped)


@torch.no_grad()
def _mean_loss(problem: Problem, probe: Sequence[Batch]) -> float:
    return sum(float(problem.objective(problem.tuned.model, batch)) for batch in probe) / len(probe)


def _choose(trials: Sequence[Trial], start: float) -> float:
    """Return the smallest rate that does nearly as well as the best: a trial is short, and a run is not."""
    falls = {
        trial.learning_rate: start - trial.loss
        for trial in trials
        if math.isfinite(trial.loss) and not trial.dropped
    }
    best = max(falls.values(), default=0.0)
    if not best > 0:
        tried = ", ".join(f"{trial.learning_rate:g}" for trial in trials)
        hint = "use a larger method.batch_size or other data"
        raise DivergenceError(f"no trial lowered the loss of {start:.4f}, at rates {tried}", hint=hint)
    return min(rate for rate, fall in falls.items() if fall >= SAME * best)


def _two_digits(value: float) -> float:
    """Round to what a person would type."""
    return float(f"{value:.1e}")
