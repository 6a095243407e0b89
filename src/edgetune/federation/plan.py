"""How long and how wide a federation runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgetune.federation.buffer import Buffer
from edgetune.federation.fleet import Fates, Fleet
from edgetune.recipe.asking import asked_devices


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how wide a federation runs.

    Args:
        rounds: number of rounds, at least 1.
        participation: share of the devices asked in a round, in (0, 1].
        seed: master seed.
        evaluate_every: rounds between held-out losses, at least 1; the last round always has one.
        answer_every: rounds between Rouge-L measurements; 0 for none.
        over_selection: devices asked beyond those that are needed, as a share of them.
        minimum: usable replies without which a round changes nothing, at least 1.
        fleet: how the devices behave; all answer at once if not given.
        buffer: replies that a step takes, of whichever rounds; a round waits for its own if not given.
    """

    rounds: int
    participation: float
    seed: int
    evaluate_every: int = 1
    answer_every: int = 0
    over_selection: float = 0.0
    minimum: int = 1
    fleet: Fleet | None = None
    buffer: Buffer | None = None

    def fates(self, round: int, asked: Sequence[int], devices: int, steps: int) -> Fates:
        """Return who of the devices asked in a round answers, with a buffer in whichever round."""
        fleet = self.fleet or Fleet(self.seed)
        if self.buffer is not None:
            return replace(fleet, deadline=math.inf).fates(round, asked, len(asked), steps)
        return fleet.fates(round, asked, asked_devices(devices, self.participation), steps)

    def due(self, round: int, every: int) -> bool:
        """Say whether a round is measured: every so many rounds and after the last; never if `every` is 0."""
        return every > 0 and (round % every == 0 or round == self.rounds)
