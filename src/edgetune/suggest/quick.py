"""A cautious learning rate and radius from a few hundred records: what a run takes where none is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgetune.core.errors import DivergenceError
from edgetune.suggest.lines import Lines, Look

RECORDS, LINES, TRIES = 2, 2, 4
"""Records of a look at a radius, lines of one, radii that are looked at."""
SIZES = ((4, 4), (8, 4), (8, 8), (16, 8), (16, 16), (32, 16))
"""Lines and records of each for the slopes, from the cheapest on."""
STRAIGHT, AIM = 0.3, 0.1
"""Ratio |L+ + L- - 2 L0| / |L+ - L-| up to which a radius is kept, and the one that a smaller radius aims at."""
CLEAR, LIFT = 10.0, 30.0
"""Multiples of the noise that a difference must exceed, and that a larger radius aims at."""
FLOOR = 2.0**-24
"""Half a unit in the last place of a loss, relative."""
SMALLEST, LARGEST = 1e-7, 1.0
LEAST_SHARED = 1 / 32
"""Squared slope of all records, in units of a record's variance, that is believed where less is seen."""
WANDERED, GAINED = 0.1, 0.1
"""Part of the loss by which the walk of a run may raise it, and that one step may be expected to win."""
HORIZON = 200
"""Steps that a rate must survive, whatever is planned."""
CAUTION = 0.5
"""Half of the best rate costs little, twice the best costs the run."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """The run that settings are wanted for.

    Args:
        batch_size: records a step.
        directions: directions a step averages.
        steps: steps that one device's weights take.
        records: records that may be passed through the model, points counted one by one.
    """

    batch_size: int
    directions: int
    steps: int
    records: int


@dataclass(frozen=True, slots=True)
class Quick:
    """What was found.

    Args:
        learning_rate: of the method's optimiser.
        eps: perturbation radius; None for gradients.
        clear: whether differences at it are clear of rounding noise.
        records: records that were passed through the model.
    """

    learning_rate: float
    eps: float | None
    clear: bool
    records: int


def find_settings(
    lines: Lines,
    ahead: Ahead,
    start: float,
    *,
    scale: Callable[[float], float] = lambda slope: 1.0,
    least: Callable[[float], float] = lambda eps: eps,
    stepped: bool = False,
) -> Quick:
    """Find a radius, and half the greatest rate that three limits allow.

        lr = 1/2 min( s sqrt(n) / c,   r sqrt(n) / (rms(g) sqrt(T)),   L / (10 E[g^2]) )
        s = G^2 / E[g^2],   E[g^2] = G^2 + V / b

    G^2 is the squared slope that all records share, V the variance of a record's, c = z'Hz, n directions and b records
    a step, T the steps. The first is the rate of the best expected step, the second keeps the random part of T steps
    within the radius r at which the loss has risen by a tenth, the third keeps a step from promising more than a tenth
    of the loss. What is unsure is taken at its cautious end: G^2 a standard error low in s, high in the others.

    Args:
        lines: where to look.
        ahead: what it is for.
        start: radius to begin with.
        scale: from the root mean square of a step's slope to the optimiser's rate, in units of plain descent's.
        least: the smallest radius of at least this one that the weights' type lets through.
        stepped: the objective is piecewise constant: a radius is too small if nothing changes, never bent.

    Raises:
        DivergenceError: if the loss is NaN or infinite, or no radius moves it.
    Cost: 20 records a radius (one to four), 48 to 1536 for the slopes by what `ahead.records` leaves, 12 to 36 for r.
    Source: limits derived in `suggest.probe`; the spread over records is the ordinary one within a batch.
    """
    eps, noise, clear = _radius(lines, least(start), least, stepped=stepped)
    left = ahead.records - lines.spent
    many, records = max((size for size in SIZES if 3 * size[0] * size[1] <= left), default=SIZES[0])
    looks = [lines.look(LINES + line, records, (eps, -eps, 0.0)) for line in range(many)]
    shared, spread, error, curvature, loss = _statistics(looks, eps, noise)
    low = max(shared - error, LEAST_SHARED * spread)
    high = max(shared + error, low) + spread / ahead.batch_size
    if not high > 0:
        raise DivergenceError(f"every slope at a radius of {eps:g} is zero", hint="raise method.eps")
    share = low / (low + spread / ahead.batch_size)
    level = 1.0 if stepped else max(abs(loss), 1e-3)
    reach = _reach(lines, math.sqrt(2 * WANDERED * level / curvature), WANDERED * level)
    wide = math.sqrt(ahead.directions)
    rate = min(
        share * wide / curvature,
        reach * wide / math.sqrt(high * max(ahead.steps, HORIZON)),
        GAINED * level / high,
    )
    rate *= CAUTION * scale(math.sqrt(high))
    return Quick(two_digits(rate), two_digits(eps), clear, lines.spent)


def _radius(
    lines: Lines, eps: float, least: Callable[[float], float], *, stepped: bool
) -> tuple[float, float, bool]:
    """Return a radius, the noise of a loss there, and whether differences are clear of it.

    The ratio of bend to difference is proportional to the radius, and the difference too, so that one look at a wrong
    radius says where the right one is.
    """
    moved, noise = False, 0.0
    for _ in range(TRIES):
        table = np.stack([
            lines.look(line, RECORDS, (-eps, -eps / 2, 0.0, eps / 2, eps)).losses for line in range(LINES)
        ])  # fmt: skip
        if not np.isfinite(table[:, 2]).all():
            raise DivergenceError(
                "the loss of the untuned model is NaN or infinite", hint="check model, data and model.dtype"
            )
        if not np.isfinite(table).all():
            eps /= 16
            continue
        noise = max(
            math.sqrt(float(np.mean((table @ (1, -4, 6, -4, 1)) ** 2)) / 70),
            FLOOR * float(np.abs(table[:, 2]).mean()),
        )
        difference = math.sqrt(float(np.mean((table[:, 4] - table[:, 0]) ** 2)))
        moved = moved or difference > 0
        if stepped:
            if difference > 0:
                return eps, 0.0, True
            eps = min(4 * eps, LARGEST)
            continue
        bend = math.sqrt(float(np.mean((table[:, 4] + table[:, 0] - 2 * table[:, 2]) ** 2)))
        clear = difference > CLEAR * noise
        factor = 1.0
        if bend > max(STRAIGHT * difference, CLEAR * noise):
            factor = max(1 / 64, AIM * difference / bend)
        elif not clear:
            room = STRAIGHT * difference / bend if bend > CLEAR * noise else 64.0
            factor = min(64.0, room, LIFT * noise / difference if difference else 64.0)
        wanted = min(max(least(eps * factor), SMALLEST), LARGEST)
        if moved and 0.7 < wanted / eps < 1.5:
            return eps, noise, clear
        eps = wanted
    if not moved:
        raise DivergenceError(
            "no perturbation radius moves the loss clear of its noise",
            hint="use a larger method.batch_size, or --set model.dtype=float32",
        )
    return eps, noise, False


def _statistics(looks: list[Look], eps: float, noise: float) -> tuple[float, float, float, float, float]:
    """Return G^2, V, the standard error of G^2, the curvature and the loss.

    Raises:
        DivergenceError: if a loss is NaN or infinite.
    """
    losses = np.stack([look.losses for look in looks])
    if not np.isfinite(losses).all():
        raise DivergenceError(f"the losses at a radius of {eps:g} are NaN or infinite")
    slopes, spreads = np.array([look.slope(0, 1, 2 * eps) for look in looks]).T
    records = len(looks[0].counts)
    squares = slopes**2 - spreads / records
    bends = (losses[:, 0] + losses[:, 1] - 2 * losses[:, 2]) / eps**2
    curvature = max(
        abs(float(np.mean(bends))),
        abs(float(np.sum(slopes**2 * bends))) / max(float(np.sum(slopes**2)), 1e-300),
        math.sqrt(float(np.mean(bends**2))) / 2,
        math.sqrt(6.0) * noise / eps**2 / math.sqrt(len(looks)),
        1e-12,
    )
    return (
        float(np.mean(squares)),
        float(np.mean(spreads)),
        float(np.std(squares)) / math.sqrt(len(looks)),
        curvature,
        float(losses[:, 2].mean()),
    )


def _reach(lines: Lines, radius: float, most: float) -> float:
    """Return a radius at which a random move raises the loss by at most `most`, beginning with a prediction of it."""
    for _ in range(3):
        table = np.stack([
            lines.look(line, RECORDS, (radius, -radius, 0.0)).losses for line in range(LINES)
        ])  # fmt: skip
        rise = float(np.mean(np.abs(table[:, 0] + table[:, 1] - 2 * table[:, 2])) / 2)
        if rise <= 1.5 * most:
            return radius
        radius *= max(1 / 8, math.sqrt(most / rise)) if math.isfinite(rise) else 1 / 8
    return radius


def two_digits(value: float) -> float:
    """Round to what a person would type."""
    return float(f"{value:.1e}")
