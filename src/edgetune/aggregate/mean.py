"""The weighted mean of what devices send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch

from edgetune.aggregate.aggregator import Aggregator, Memory, ordered, shares
from edgetune.core.errors import ConfigError
from edgetune.core.part import HELD
from edgetune.core.update import Contribution, Dense, Projected, Update


@dataclass(frozen=True, slots=True)
class Mean(Aggregator):
    """Federated averaging.

        update = sum_c p_c update_c,   p_c = n_c / sum n   (or 1 / devices)

    A tensor that only some devices trained is their mean alone; one that nobody trained does not move.

    Args:
        by_examples: weight devices by their number of training examples; else alike.
    Cost: K numbers for projected updates; one pass over dense tensors.
    Source: McMahan et al. 2017, arXiv:1602.05629.
    """

    by_examples: bool = True
    name: ClassVar[str] = "mean"
    options: ClassVar[Mapping[str, str]] = {"by_examples": "by_examples"}

    @property
    def refuses(self) -> frozenset[str]:
        """Slopes of weights that nobody moved: their mean is a gradient, and no step against it."""
        return frozenset({HELD})

    def combine(self, contributions: Sequence[Contribution], state: Update, memory: Memory) -> Update | None:
        """Return the mean update in order of device id, or None if there is nothing to combine.

        Raises:
            ConfigError: if dense and projected updates are mixed.
        """
        if not contributions:
            return None
        told = ordered(contributions)
        weights = shares(told, by_examples=self.by_examples)
        projected = [one.update for one in told if isinstance(one.update, Projected)]
        dense = [one.update for one in told if isinstance(one.update, Dense)]
        if projected and dense:
            raise ConfigError("dense and projected updates cannot be averaged together")
        if projected:
            summed = Projected.none()
            for share, update in zip(weights, projected, strict=True):
                summed = summed + update.scaled(share)
            return summed.merged()
        found = dict[str, torch.Tensor]()
        for name in dict.fromkeys(name for update in dense for name in update.tensors):
            trained = [one for one in told if isinstance(one.update, Dense) and name in one.update.tensors]
            parts = shares(trained, by_examples=self.by_examples)
            sent = [one.update.tensors[name] for one in trained if isinstance(one.update, Dense)]
            found[name] = cast(torch.Tensor, sum(share * one for share, one in zip(parts, sent, strict=True)))
        return Dense(found)
