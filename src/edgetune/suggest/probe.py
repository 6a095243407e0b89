"""The range test's measurements: losses along random lines give noise, slope and curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgetune.core.batch import Batch, Objective
from edgetune.core.errors import DivergenceError
from edgetune.core.tuned import PerturbableTuned

SMALLEST, LARGEST = 1e-6, 1.0
"""Radii that are tried, in units of the weights."""
CLEAR = 10.0
"""A difference counts if it exceeds the noise this many times."""
BENT = 0.5
"""Curvature dominates from this ratio |L+ + L- - 2 L0| / |L+ - L-| on."""
REALISED = 0.5
FAINT = 2.0
"""Below this ratio of difference to noise nothing can be learnt from a slope."""
FLOOR = 2.0**-24
"""Half a unit in the last place of a loss, relative: the objective returns float32."""

WANDERED = 0.1
"""Part of the loss by which the random part of a run may raise it."""

Losses = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Problem:
    """What a range test works on.

    Args:
        tuned: the handle at its base.
        objective: the loss that training minimises.
        batch: the i-th training batch, independent of all others; a pure function of i.
        keys: directions, as many as slopes are wanted.
        realised: realised ratio of a perturbation of a radius (`measure.realised`).
    """

    tuned: PerturbableTuned
    objective: Objective
    batch: Callable[[int], Batch]
    keys: Sequence[int]
    realised: Callable[[float], float]

    def losses(self, index: int, batch: int, scales: Sequence[float]) -> Losses:
        """Evaluate a batch along direction `index` of `keys`, float64 [scales]."""
        found = self.tuned.losses(self.objective, self.batch(batch), self.keys[index], scales)
        return np.array(found, np.float64)


@dataclass(frozen=True, slots=True)
class Radius:
    """What was seen at one perturbation radius.

    Args:
        eps: the radius.
        noise: standard deviation of one loss by rounding, nats.
        difference: median |L+ - L-|, nats.
        clear: share of the directions in which it exceeds 10 times the noise.
        bend: median |L+ + L- - 2 L0| / |L+ - L-|.
        bent: whether curvature dominates, and that is not noise.
        realised: realised ratio of the perturbation.
    """

    eps: float
    noise: float
    difference: float
    clear: float
    bend: float
    bent: bool
    realised: float

    @property
    def usable(self) -> bool:
        """Whether the slope is clear of noise, the line straight, and the perturbation survives rounding."""
        return self.clear > 0.5 and self.bend < BENT and self.realised >= REALISED


@dataclass(frozen=True, slots=True)
class Slopes:
    """Statistics over directions z and independent pairs of batches a, b.

    Args:
        mean: of g = dL/dz at the radius.
        variance: of g.
        shared: E[g_a g_b] / E[g^2]: the part of a squared slope that another batch confirms, in (0, 1].
        curvature: E[g_a^2 z'H_b z] / E[g^2], positive.
    """

    mean: float
    variance: float
    shared: float
    curvature: float

    @property
    def rate(self) -> float:
        """The learning rate of the greatest expected decrease in one step: `shared / curvature`."""
        return self.shared / self.curvature


def measure_radius(problem: Problem, eps: float, directions: int) -> Radius:
    """Look along several directions at one radius.

    The noise that matters is not that of repeating a forward pass, which a CPU does bit for bit, but how roundings fall
    when the weights move a little. Five equally spaced points show it: the fourth difference of a smooth loss vanishes
    as eps^4, that of independent roundings does not (its variance is 1 + 16 + 36 + 16 + 1 = 70 times theirs). Another
    order or split of the batch would change the last bits only; other records are no noise, both losses share them.

        noise = max(rms_z(L-2 - 4 L-1 + 6 L0 - 4 L1 + L2) / sqrt(70), |L - L'| of two equal forwards, 2^-24 |L|)

    Args:
        problem: what to look at.
        eps: the radius; the points lie at -eps, -eps/2, 0, eps/2, eps.
        directions: how many of `problem.keys` to use, each with a batch of its own.

    Raises:
        DivergenceError: if the unperturbed loss is NaN or infinite.
    Cost: 6 forward passes a direction.
    Source: difference tables after Moré and Wild 2011, Estimating Computational Noise, SIAM J. Sci. Comput. 33(3).
    """
    scales = (-eps, -eps / 2, 0.0, eps / 2, eps, 0.0)
    table = np.stack([problem.losses(index, index, scales) for index in range(directions)])
    if not np.isfinite(table[:, 2]).all():
        raise DivergenceError(
            "the loss of the untuned model is NaN or infinite", hint="check model, data and model.dtype"
        )
    if not np.isfinite(table).all():
        return Radius(eps, math.nan, math.nan, 0.0, math.inf, True, problem.realised(eps))
    rough = math.sqrt(float(np.mean((table[:, :5] @ (1, -4, 6, -4, 1)) ** 2)) / 70)
    repeated = float(np.abs(table[:, 5] - table[:, 2]).max())
    noise = max(rough, repeated, FLOOR * float(np.abs(table[:, 2]).mean()), 1e-300)
    difference = np.abs(table[:, 4] - table[:, 0])
    bend = np.abs(table[:, 4] + table[:, 0] - 2 * table[:, 2])
    ratio = float(np.median(bend / np.maximum(difference, 1e-300)))
    return Radius(
        eps=eps,
        noise=noise,
        difference=float(np.median(difference)),
        clear=float(np.mean(difference > CLEAR * noise)),
        bend=ratio,
        bent=ratio >= BENT and float(np.median(bend)) > CLEAR * noise,
        realised=problem.realised(eps),
    )


def scan_radii(problem: Problem, directions: int) -> list[Radius]:
    """Double the radius until most differences are clear of noise, then quadruple it until curvature dominates.

    Radii of which rounding leaves less than half are skipped without a forward pass.

    Cost: about 10 radii.
    """
    eps, rows = SMALLEST, list[Radius]()
    while eps <= LARGEST:
        if problem.realised(eps) >= REALISED:
            rows.append(measure_radius(problem, eps, directions))
            if rows[-1].bent:
                break
        eps *= 4 if rows and rows[-1].usable else 2
    return rows


def choose_radius(rows: Sequence[Radius]) -> tuple[Radius, float, bool]:
    """Take the middle of the usable radii, on a logarithmic scale, so that both ends may move while training.

    Returns:
        The row, the largest usable radius, and whether the difference is clear of noise there. Where no radius is
        usable, as in bfloat16 with small batches, the last one that is not bent: signal grows with it, noise does not.

    Raises:
        DivergenceError: if no radius makes the loss react.
    """
    band = [row for row in rows if row.usable]
    if band:
        middle = math.sqrt(band[0].eps * band[-1].eps)
        return min(band, key=lambda row: abs(math.log(row.eps / middle))), band[-1].eps, True
    straight = [row for row in rows if not row.bent and row.difference > FAINT * row.noise]
    if not straight:
        hint = "use a larger method.batch_size, or --set model.dtype=float32"
        raise DivergenceError("no perturbation radius moves the loss clear of its noise", hint=hint)
    return straight[-1], straight[-1].eps, False


def measure_slopes(problem: Problem, radius: Radius, top: float, directions: int) -> Slopes:
    """Measure slopes and curvatures for the learning rate.

    A step w <- w - lr g_a z along slope g_a of batch a changes the loss of another batch b by

        E[dL] = -lr E[g_a g_b] + lr^2/2 E[g_a^2 z'H_b z]

    which is least at lr = E[g_a g_b] / E[g_a^2 z'H_b z]. The two batches are independent, because g_a^2 alone counts
    the noise of its own batch as progress. For Rademacher z and a full batch this is about 1 / tr H.

    Args:
        problem: what to look at.
        radius: for the slopes, `(L+ - L-) / (2 eps)`.
        top: radius for the curvatures, `(L+ + L- - 2 L0) / top^2`, whose noise falls with its square.
        directions: how many; two batches each.

    Raises:
        DivergenceError: if a loss is NaN or infinite, or all slopes are zero.
    Cost: 10 forward passes a direction. `shared` is unsure by about 1 / sqrt(directions) and kept in [1/16, 1]; a
        curvature below its own standard error counts as that.
    """
    eps = radius.eps
    scales = (eps, -eps, 0.0, top, -top)
    lines = np.stack(
        [[problem.losses(i, 2 * i + half, scales) for half in (0, 1)] for i in range(directions)]
    )
    slopes = (lines[..., 0] - lines[..., 1]) / (2 * eps)
    bends = (lines[..., 3] + lines[..., 4] - 2 * lines[..., 2]) / top**2
    squared = float(np.mean(slopes**2))
    if not (math.isfinite(squared) and np.isfinite(bends).all() and squared > 0):
        raise DivergenceError(f"the slopes at a radius of {eps:g} are zero, NaN or infinite")
    weighted = slopes**2 * bends[:, ::-1] / squared
    curvature = abs(float(np.mean(weighted)))
    unsure = math.sqrt(6.0) * radius.noise / top**2 / math.sqrt(bends.size)
    shared = float(np.mean(slopes[:, 0] * slopes[:, 1])) / squared
    return Slopes(
        mean=float(np.mean(slopes)),
        variance=float(np.var(slopes)),
        shared=min(1.0, max(1 / 16, shared)),
        curvature=max(curvature, unsure),
    )


def measure_reach(problem: Problem, start: float, directions: int) -> float:
    """Find how far all weights may be moved at random before the loss is no longer that of this model.

    The largest r with E_z[L(w + r z) + L(w - r z)] / 2 - L(w) <= L(w) / 10, between the last radius that keeps to it
    and the first that does not, interpolated as a power of r.

    A run is a random walk in almost all directions: T steps at rate lr move every weight by about lr rms(g) sqrt(T).
    Once that exceeds r, curvature and slopes grow faster than the steps can correct, and the run diverges however well
    its first steps went: `lr <= r / (rms(g) sqrt(T))`.

    Args:
        problem: what to look at.
        start: radius from which to double.
        directions: how many.

    Returns:
        r, in units of the weights; at most 16.
    Cost: 3 forward passes a direction and doubling.
    Source: measured, see docs/log.md: the embedded model diverged when its steps had wandered 0.018, r is 0.015.
    """
    radius, last = start, (start / 2, 0.0)
    while radius <= 16:
        lines = np.stack([problem.losses(i, i, (radius, 0.0, -radius)) for i in range(directions)])
        level = max(WANDERED * abs(float(lines[:, 1].mean())), 1e-300)
        rise = float(np.mean((lines[:, 0] + lines[:, 2]) / 2 - lines[:, 1])) / level
        if not rise <= 1:
            if not (math.isfinite(rise) and last[1] > 0):
                return last[0]
            power = math.log(rise / last[1]) / math.log(radius / last[0])
            return float(last[0] * (1 / last[1]) ** (1 / power))
        radius, last = 2 * radius, (radius, rise)
    return last[0]
