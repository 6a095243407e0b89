"""Which grid each matrix gets, so that a file fits into a given size and loses least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgetune.core.errors import ConfigError

STEPS = 8192
"""Parts of the budget in which sizes are counted, each rounded up: at most 1/8192 of it a matrix stays unused."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A grid for a matrix: what it takes and what it costs.

    Args:
        grid: its name.
        size: bytes.
        loss: what it adds to the KL divergence, predicted; not negative.
    """

    grid: str
    size: int
    loss: float


def allocate(choices: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """Choose one grid a matrix with the least total loss among those that fit.

        min sum_t loss_t(g_t)   subject to   sum_t size_t(g_t) <= budget

    A multiple-choice knapsack, solved by dynamic programming over sizes beyond the smallest choice of each matrix.

    Args:
        choices: what each matrix may take, at least one.
        budget: bytes for all.

    Returns:
        name to choice.

    Raises:
        ConfigError: if even the smallest choices are too large.
    Cost: matrices * choices * STEPS additions.
    Source: the linear model of losses is HIGGS's (arXiv 2411.17525); the knapsack a textbook's.
    """
    least = {name: min(each, key=lambda one: (one.size, one.loss)) for name, each in choices.items()}
    smallest = sum(one.size for one in least.values())
    if smallest > budget:
        raise ConfigError(
            f"the smallest file needs {smallest:,} bytes for its matrices, {budget:,} are left for them",
            where="size",
            hint="allow more, or prune the model first",
        )
    unit = max(1, -(-(budget - smallest) // STEPS))
    room = (budget - smallest) // unit
    best = np.zeros(room + 1)
    taken: list[np.ndarray[tuple[int], np.dtype[np.int16]]] = []
    for name, each in choices.items():
        found, which = np.full(room + 1, np.inf), np.full(room + 1, -1, dtype=np.int16)
        for place, one in enumerate(each):
            more = -(-(one.size - least[name].size) // unit)
            if more > room:
                continue
            value = best[: room + 1 - more] + one.loss
            better = value < found[more:]
            found[more:] = np.where(better, value, found[more:])
            which[more:] = np.where(better, np.int16(place), which[more:])
        best = found
        taken.append(which)
    result: dict[str, Choice] = {}
    at = int(best.argmin())
    for name, which in zip(reversed(list(choices)), reversed(taken), strict=True):
        one = choices[name][int(which[at])]
        result[name] = one
        at -= -(-(one.size - least[name].size) // unit)
    return {name: result[name] for name in choices}
