"""Fresh directions that resemble the server's last step: more are drawn than are passed through the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from edgetune.core.errors import ConfigError
from edgetune.core.part import LAST_STEP
from edgetune.core.tuned import Adds
from edgetune.core.update import Stepped, Update
from edgetune.directions.cosine import cosines
from edgetune.directions.draw import Fresh

MOST = 1000
"""Candidates a direction: each is drawn, and the best of more are hardly better."""


@dataclass(frozen=True, slots=True)
class Discriminative(Fresh):
    """The tenth of all candidates of a device's round that point most along the last step, or against it.

        keep the n of n candidates with the greatest |cos(z_i, g)|,   g = sum_j c_j z_j: the server's last step

    A direction and its opposite have the same product of slope and direction, so that the size of the cosine counts and
    not its sign, by which the reference implementation ranks: that throws half of the best away. Whole directions are
    ranked, over all tensors, and all of a device's round at once. Before the first step, and with one candidate, these
    are `Fresh` direction for direction.

    The estimate is biased. With Gaussian directions its part along g is too long by the factor E[x^2 | |x| > t], 4.4
    for 10 candidates (x normal, t its upper twentieth), and the rest is as without. A paced server takes the products
    of different directions for independent, and so takes its variance for a little smaller than it is. A learning rate
    of plain directions may be too large.

    Args:
        kind: what a direction looks like; not a pooled kind.
        shared: all devices of a round take the same ones.
        candidates: drawn for each that is kept, 1 to 1000.

    Raises:
        ConfigError: if there are none, or more.
    Cost: a draw of every candidate; on the wire a byte a direction, which says how many candidates were left out.
    Source: Xu et al. 2023, arXiv:2308.13894, section 3.4 (FwdLLM, 10 candidates; ranked a tensor at a time there).
    """

    candidates: int = 10
    name: ClassVar[str] = "discriminative"
    options: ClassVar[Mapping[str, str]] = {**Fresh.options, "candidates": "candidates"}
    entails: ClassVar[Mapping[str, object]] = {"keep_last": True}

    def __post_init__(self) -> None:
        Fresh.__post_init__(self)
        if not 1 <= self.candidates <= MOST:
            raise ConfigError(f"a direction is chosen among 1 to {MOST:,} candidates, not {self.candidates}")

    @property
    def needs(self) -> frozenset[str]:
        """Slopes along them, and that devices know the last step."""
        return Fresh.needs.fget(self) | {LAST_STEP}  # type: ignore[attr-defined,no-any-return]

    @property
    def offers(self) -> int:
        """Directions that are offered for each that is taken."""
        return self.candidates

    def settings(self) -> dict[str, object]:
        """Return the options of this part."""
        return {"directions": self.kind.name, "candidates": self.candidates}

    def with_option(self, option: str, value: object) -> Discriminative:
        """Return directions of another kind, by its name, or with another number of candidates."""
        if option == "candidates":
            return replace(self, candidates=int(str(value)))
        return replace(self, kind=Fresh.with_option(self, option, value).kind)

    @classmethod
    def instead_of(cls, old: Any, given: frozenset[str], wanted: Mapping[str, Any]) -> Discriminative:
        """Return such directions in place of others."""
        plain = Fresh.instead_of(old, given, wanted)
        return cls(plain.kind, plain.shared)

    def choose(
        self,
        space: Adds,
        weights: Iterable[tuple[str, torch.Tensor]],
        offered: Sequence[int],
        count: int,
        state: Update | None,
    ) -> list[int]:
        """Return so many of the candidates, in the order in which they are offered; of equal ones the first.

        Args:
            space: the directions.
            weights: the tuned tensors.
            offered: all candidates of a device's round.
            count: how many are kept.
            state: the server's, which says what its last step was.
        """
        if count >= len(offered) or not isinstance(state, Stepped):
            return list(offered[:count])
        found = np.abs(cosines(space, weights, offered, state.step))
        kept = np.sort(np.argsort(-found, kind="stable")[:count])
        return [offered[index] for index in kept.tolist()]
