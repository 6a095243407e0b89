"""The mean of what devices send, and a memory of how large slopes along each direction were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from edgetune.aggregate.aggregator import Memory, ordered
from edgetune.aggregate.mean import Mean
from edgetune.core.part import AMPLITUDES, EVERY_SLOPE, POOL
from edgetune.core.update import Contribution, Projected, Update, Weighed


@dataclass(frozen=True, slots=True)
class MeanAmplitudes(Mean):
    """Federated averaging that remembers amplitudes.

        A_j = (sum_i min(|g_ji|, C)) / (1 + n_j)      over all n_j slopes along direction j so far

    The 1 is the first entry of every history in the reference implementation, a zero. Sums and counts are all that a
    server has to keep; there every slope is kept.

    Args:
        clip: C, > 0.
    Cost: two numbers a direction.
    Source: Qin et al. 2024, arXiv:2312.06353, section 4.3; alibaba/FederatedScope branch FedKSeed.
    """

    clip: float = 1000.0
    name: ClassVar[str] = "mean_amplitudes"

    @property
    def gives(self) -> frozenset[str]:
        """Amplitudes."""
        return frozenset({AMPLITUDES})

    @property
    def needs(self) -> frozenset[str]:
        """The slope of every step along a pool's directions."""
        return frozenset({EVERY_SLOPE, POOL})

    def start(self, state: Update) -> Memory:
        """Return K sums and counts of nothing."""
        many = len(state.keys) if isinstance(state, Projected) else 0
        return {name: torch.zeros(many, dtype=torch.float64) for name in ("sums", "counts")}

    def combine(self, contributions: Sequence[Contribution], state: Update, memory: Memory) -> Update | None:
        """Return the mean update, and remember the slopes."""
        for one in ordered(contributions):
            if one.slopes is not None:
                sizes = np.minimum(np.abs(one.slopes.coefficients.astype(np.float64)), self.clip)
                np.add.at(memory["sums"].numpy(), one.slopes.keys, sizes)
                np.add.at(memory["counts"].numpy(), one.slopes.keys, 1.0)
        return Mean.combine(self, contributions, state, memory)

    def weigh(self, state: Update, memory: Memory) -> Update:
        """Return the state with A."""
        if not isinstance(state, Projected):
            return state
        amplitudes = (memory["sums"] / (1 + memory["counts"])).numpy().astype(np.float32)
        return Weighed(state.keys, state.coefficients, amplitudes)
