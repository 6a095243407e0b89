"""FLoRA: the devices' factors are stacked, and what they make goes into the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.aggregate.aggregator import Memory, ordered, shares
from edgetune.aggregate.factors import dense, factors, stacked
from edgetune.aggregate.mean import Mean
from edgetune.core.part import FACTORS, GRADIENTS, HELD, RESIDUALS, STALE
from edgetune.core.residual import named, trained
from edgetune.core.update import Contribution, Dense, Update


@dataclass(frozen=True, slots=True)
class Flora(Mean):
    """The exact sum of products in the base; every round begins with the initial factors again.

        R <- R + sum_c p_c B_c A_c - B A = R + [p_1 B_1 ... p_n B_n -B] [A_1; ...; A_n; A],   B, A: the initial ones

    B is zero unless an initialiser made it.

    Args:
        by_examples: weight devices by their number of training examples; else alike.
    Cost: a round adds rank r n to the residual, which becomes a matrix once that is smaller.
    Source: Wang et al. 2024, arXiv:2409.05976.
    """

    name: ClassVar[str] = "flora"

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
        """Return the residual's growth; the state's own factors stay the initial ones.

        Raises:
            ConfigError: if an update is projected.
        """
        if not contributions:
            return None
        told, before = ordered(contributions), dense(state)
        weights = shares(told, by_examples=self.by_examples)
        each = [factors(one.update, before) for one in told]
        sums = {
            stem: stacked([(p, one[stem]) for p, one in zip(weights, each, strict=True)]) for stem in each[0]
        }
        still = {name: torch.zeros_like(one) for name, one in trained(before).tensors.items()}
        for stem, initial in factors(Dense(still), before).items():
            if bool(
                initial[0].any()
            ):  # their product, which the devices' hold as well, is above the base again
                sums[stem] = stacked([(1.0, sums[stem]), (-1.0, initial)])
        return Dense(still | named(before, sums))
