"""Momentum in coefficient space: the state is one number a direction, not one a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.tuned import Tuned
from edgetune.core.update import Update
from edgetune.updates.history import forget, seen, step_of
from edgetune.updates.remembering import Remembering


@dataclass(frozen=True, slots=True)
class Momentum(Remembering):
    """Stochastic gradient descent with heavy-ball momentum on the coefficients of directions.

        m <- mu m + g;   a <- a - lr m       m, g, a: one number a direction

    Being linear in the slopes, it is exactly momentum on the weights, with the direction z_k of every slope. For a pool
    the state is at most K numbers. For fresh seeds only the newest `history` slopes are remembered: a slope moves the
    weights by lr g (1 - mu^history) / (1 - mu) in all, a share mu^history less than it would (0.1 % for 0.9 and 64).

    Args:
        lr: learning rate, >= 0.
        momentum: mu, in [0, 1).
        history: slopes remembered, for fresh seeds; 0 remembers every direction, for pools.

    Raises:
        ConfigError: if a number is out of its range.
    Cost: a step moves as many directions as are remembered: one replay of a pool, `history` draws of fresh seeds.
    Source: Polyak 1964; `torch.optim.SGD(momentum=...)`; Malladi et al. 2023, arXiv:2305.17333, appendix B.
    """

    lr: float
    momentum: float = 0.9
    history: int = 0
    name: ClassVar[str] = "momentum"
    options: ClassVar[Mapping[str, str]] = {**Remembering.options, "momentum": "momentum"}

    def __post_init__(self) -> None:
        if not 0 <= self.lr < float("inf"):
            raise ConfigError(f"the learning rate must be a number of at least 0, not {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be at least 0 and below 1, not {self.momentum}")
        if self.history < 0:
            raise ConfigError(f"a history cannot hold {self.history} slopes")

    def start(self, tuned: Tuned) -> dict[str, torch.Tensor]:
        """Return the state before any direction was seen: `keys` int64 [0] and `m` float32 [0]."""
        return {"keys": torch.zeros(0, dtype=torch.int64), "m": torch.zeros(0, dtype=torch.float32)}

    def step(self, tuned: Tuned, estimate: Update, state: dict[str, torch.Tensor], rate: float = 1.0) -> None:
        """Apply one step to the handle; `rate` scales the learning rate of this step.

        Raises:
            ConfigError: if the estimate is dense.
        """
        slopes = seen(state, estimate, ("m",))
        state["m"] = self.momentum * state["m"] + slopes
        forget(state, ("m",), self.history)
        tuned.apply(step_of(state, -self.lr * rate * state["m"]))

    def scale(self, slope: float) -> float:
        """Return 1 - mu: a slope moves the weights 1 / (1 - mu) times in all."""
        return 1 - self.momentum
