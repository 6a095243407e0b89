"""FFA-LoRA: the mean of one factor, exact because the other is fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from edgetune.aggregate.mean import Mean
from edgetune.core.part import FIXED_FACTOR


@dataclass(frozen=True, slots=True)
class Ffa(Mean):
    """The mean of B, where A is the seed's on all devices and never moves.

        sum_c p_c B_c A = (sum_c p_c B_c) A

    Args:
        by_examples: weight devices by their number of training examples; else alike.
    Cost: half of the mean's, in computing and in bytes.
    Source: Sun et al. 2024, arXiv:2403.12313.
    """

    name: ClassVar[str] = "ffa"
    entails: ClassVar[Mapping[str, object]] = {"freeze_a": True}

    @property
    def needs(self) -> frozenset[str]:
        """An A that nobody moves."""
        return frozenset({FIXED_FACTOR})
