"""Which layers every device trains: the best sum of scores within its budget, less a price for disagreement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
SWEEPS = 50
"""Sweeps over the devices after which coordinate ascent ends, converged or not; it needs three or four."""


def cost(mask: Bools) -> float:
    """Return what training these layers costs: half the depth of the backward pass, half the layers that are updated.

    ((L - lowest) + |m|) / 2: 1 for the top layer, L for all, 0 for none.
    """
    chosen = np.flatnonzero(mask)
    return float(len(mask) - chosen[0] + len(chosen)) / 2 if len(chosen) else 0.0


def assign(scores: Floats, budgets: Sequence[float], consistency: float) -> list[Bools]:
    """Return one mask a device.

        max  sum_i m_i . s_i  -  lambda sum_{i<j} |m_i - m_j|^2,   cost(m_i) <= R_i

    Given the others, a device's best mask is found exactly; devices take turns until none changes. That ends in a local
    optimum, so it is begun from every device's own choice and from what all would choose together, and the better end
    is taken.

    Args:
        scores: at least 0, float64 [devices, layers], layers by depth.
        budgets: R_i, at least 1.
        consistency: lambda, at least 0.
    Cost: a few times devices x layers^2 log layers; an integer program is not needed.
    Source: arXiv:2408.15600, problem (P1), there solved by branch and bound.
    """
    alone = np.stack([_best(row, budget) for row, budget in zip(scores, budgets, strict=True)])
    if consistency == 0:
        return list(alone)
    common = _best(scores.sum(0), min(budgets))
    together = np.stack([common] * len(budgets))
    ends = [_ascend(scores, budgets, consistency, start) for start in (alone, together)]
    values = [value(scores, end, consistency) for end in ends]
    return list(ends[int(np.argmax(values))])


def value(scores: Floats, masks: Bools, consistency: float) -> float:
    """Return the objective of `assign`."""
    ones = masks.sum(0)
    return float((scores * masks).sum() - consistency * (ones * (len(masks) - ones)).sum())


def _ascend(scores: Floats, budgets: Sequence[float], consistency: float, start: Bools) -> Bools:
    masks: Bools = start.copy()
    for _ in range(SWEEPS):
        before = masks.copy()
        for index, budget in enumerate(budgets):
            others = masks.sum(0) - masks[index]
            worth = scores[index] - consistency * (len(budgets) - 1 - 2 * others)
            masks[index] = _best(worth, budget)
        if np.array_equal(before, masks):
            break
    return masks


def _best(worth: Floats, budget: float) -> Bools:
    """Return the mask with the greatest sum that the budget pays for: for every lowest layer, it and the best above."""
    layers, found, most = len(worth), np.zeros(len(worth), bool), -np.inf
    for lowest in range(layers):
        room = int(2 * budget) - (layers - lowest)
        if room < 1:
            continue
        above = lowest + 1 + np.argsort(-worth[lowest + 1 :], kind="stable")[: room - 1]
        mask = np.zeros(layers, bool)
        mask[above[worth[above] >= 0]] = True
        mask[lowest] = True
        total = float(worth[mask].sum())
        if total > most:
            found, most = mask, total
    return found
