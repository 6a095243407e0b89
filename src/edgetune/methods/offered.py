"""Which directions a device may take in a round, and which of them it takes."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from edgetune.core.tuned import Adds
from edgetune.core.update import Update
from edgetune.methods.method import TuningMethod


def offered_keys(
    method: TuningMethod, seed: int, round: int, device: int, state: Update | None = None
) -> list[int]:
    """Return the directions that a device may take in a round: a pure function of the arguments.

    Those of its steps (`TuningMethod.keys`), unless it chooses them; then all candidates, which begin with those.

    Args:
        method: names how directions are drawn.
        seed: of the run.
        round: from 1.
        device: whose steps they are.
        state: what the round starts from.
    """
    directions, each = method.directions, method.estimate.directions
    if directions is None or directions.offers == 1:
        return method.keys(seed, round, device, state)
    many = method.local_steps * directions.offers
    return directions.draw(seed, round, device, many, each, state=state)


def taken_keys(
    method: TuningMethod,
    offered: list[int],
    state: Update | None,
    space: Adds | None,
    weights: Iterable[tuple[str, torch.Tensor]],
) -> list[int]:
    """Return the directions of a device's steps, of those that it is offered.

    Args:
        method: names how directions are chosen.
        offered: as `offered_keys` returns them.
        state: what the round starts from.
        space: the directions; None for gradients.
        weights: the tuned tensors by name.
    """
    if method.directions is None or space is None:
        return offered
    count = method.local_steps * method.estimate.directions
    return method.directions.choose(space, weights, offered, count, state)
