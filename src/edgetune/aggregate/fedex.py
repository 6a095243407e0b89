"""FedEx-LoRA: the mean of the factors, and what it lacks in the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from edgetune.aggregate.aggregator import Memory, ordered, shares
from edgetune.aggregate.factors import dense, factors, stacked
from edgetune.aggregate.mean import Mean
from edgetune.core.part import FACTORS, GRADIENTS, HELD, RESIDUALS, STALE
from edgetune.core.residual import named
from edgetune.core.update import Contribution, Dense, Update


@dataclass(frozen=True, slots=True)
class FedEx(Mean):
    """The mean of A and of B, and their residual added to the frozen base.

        A <- sum_c p_c A_c,   B <- sum_c p_c B_c,   R <- R + sum_c p_c B_c A_c - B A

    Args:
        by_examples: weight devices by their number of training examples; else alike (as the reference code does).
    Cost: the mean's; a round adds rank r (n + 1) to the residual, which becomes a matrix once that is smaller.
    Source: Singhal et al. 2024, arXiv:2410.09432.
    """

    name: ClassVar[str] = "fedex"

    @property
    def gives(self) -> frozenset[str]:
        """A part of the change that is in the base."""
        return frozenset({RESIDUALS})

    @property
    def needs(self) -> frozenset[str]:
        """Both factors, as dense tensors."""
        return frozenset({FACTORS, GRADIENTS})

    @property
    def refuses(self) -> frozenset[str]:
        """What a mean refuses, and factors that started from others than the round's: products do not add up."""
        return frozenset({HELD, STALE})

    def combine(self, contributions: Sequence[Contribution], state: Update, memory: Memory) -> Update | None:
        """Return the mean's change and the residual's growth.

        Raises:
            ConfigError: if an update is projected.
        """
        mean = Mean.combine(self, contributions, state, memory)
        if mean is None:
            return None
        told, before = ordered(contributions), dense(state)
        weights, after = shares(told, by_examples=self.by_examples), factors(mean, before)
        each = [factors(one.update, before) for one in told]
        lacks = {
            stem: stacked([*((p, one[stem]) for p, one in zip(weights, each, strict=True)), (-1.0, result)])
            for stem, result in after.items()
        }
        return Dense({**dense(mean).tensors, **named(before, lacks)})
