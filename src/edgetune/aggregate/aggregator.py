"""What every way to combine devices' updates can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.part import Part
from edgetune.core.update import Contribution, Update

LEAST_RATE, MOST_RATE = 1e-12, 1e6

Memory = dict[str, torch.Tensor]
"""What a server remembers from round to round beside the state, by name; a run that goes on reads it back."""


class Aggregator(Part):
    """From the devices' contributions to one update; implementations are frozen values.

    What comes out does not depend on the order in which contributions came in.
    """

    __slots__ = ()
    complete: ClassVar[bool] = False
    """Whether contributions name every direction of their device's steps, with 0 where none counted."""

    def start(self, state: Update) -> Memory:
        """Return the memory before the first round; names, types and shapes stay.

        Args:
            state: before it; of a pool all K coefficients.
        """
        return {}

    def enrol(self, state: Update, devices: Mapping[int, int]) -> Memory:
        """Return what is remembered of every device before the first round; names, types and shapes stay.

        Args:
            state: as in `start`.
            devices: all of the federation, with the examples that each holds.
        """
        return {}

    def weigh(self, state: Update, memory: Memory) -> Update:
        """Return the state with what directions are drawn by, where that follows from the memory."""
        return state

    def factor(self, count: int) -> float:
        """Return what a step is times its slope, for so many slopes that counted; 1 where steps are no such product."""
        return 1.0

    def scale(self, slope: float, count: int) -> float:
        """Return this step's rate as a multiple of that of plain descent along the mean of so many slopes."""
        return 1.0

    @abstractmethod
    def combine(self, contributions: Sequence[Contribution], state: Update, memory: Memory) -> Update | None:
        """Return the change of the state.

        Args:
            contributions: what can be used of a round's replies.
            state: what the round started from.
            memory: changed in place.

        Returns:
            The change; None if there is nothing to change yet: what came is remembered, or there was nothing.
        """


def check_rate(lr: float) -> None:
    """Refuse a rate with which float32 steps would lose their digits.

    Raises:
        ConfigError: naming it.
    """
    if not LEAST_RATE <= lr <= MOST_RATE:
        raise ConfigError(f"a server's learning rate must lie between 1e-12 and 1e6, not {lr}")


def ordered(contributions: Sequence[Contribution]) -> list[Contribution]:
    """Return contributions by device: sums are rounded, so that their order is part of the result."""
    return sorted(contributions, key=lambda one: one.device)


def shares(contributions: Sequence[Contribution], *, by_examples: bool) -> list[float]:
    """Return the weight of each contribution: its part of all examples, or alike; they add up to 1.

    p_c = n_c / sum n   (or 1 / devices)
    """
    weights = [one.examples if by_examples else 1 for one in contributions]
    total = sum(weights)
    return [weight / total for weight in weights]
