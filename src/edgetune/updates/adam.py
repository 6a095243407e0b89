"""Adam in coefficient space: the state is two numbers a direction, not two a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.core.errors import ConfigError
from edgetune.core.tuned import Tuned
from edgetune.core.update import Update
from edgetune.updates.history import forget, seen, step_of
from edgetune.updates.remembering import Remembering

BETA2, EPS = 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class Adam(Remembering):
    """Adam on the coefficients of directions.

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2;   a <- a - lr m^ / (sqrt(v^) + 1e-8)

    For a pool, m, v and a are vectors of K numbers: Adam on the model `w0 + sum_k a_k z_k`, whose gradient in a_k is
    the slope along z_k. For fresh seeds a direction is seen once, so v is one number for all, fed by the sum of the
    step's squared slopes. For one Rademacher direction a step that is Adam on the weights exactly, because every
    element of g z has the square g^2; for gaussian or several directions it is so on average. The newest `history`
    slopes are remembered: what is forgotten is a share b1^history of a slope's whole effect (0.1 % for 0.9 and 64).

    Args:
        lr: learning rate, >= 0, in units of a coefficient: a pool's step can move all K coefficients by it.
        beta1: b1, in [0, 1); b2 is 0.999.
        history: slopes remembered, for fresh seeds; 0 remembers every direction, for pools.

    Raises:
        ConfigError: if a number is out of its range.
    Cost: a step moves as many directions as are remembered: one replay of a pool, `history` draws of fresh seeds.
    Source: Kingma and Ba 2014, arXiv:1412.6980; `torch.optim.Adam`; Malladi et al. 2023, arXiv:2305.17333, appendix B.
    """

    lr: float
    beta1: float = 0.9
    history: int = 0
    name: ClassVar[str] = "adam"
    options: ClassVar[Mapping[str, str]] = {**Remembering.options, "momentum": "beta1"}

    def __post_init__(self) -> None:
        if not 0 <= self.lr < float("inf"):
            raise ConfigError(f"the learning rate must be a number of at least 0, not {self.lr}")
        if not 0 <= self.beta1 < 1:
            raise ConfigError(f"beta1 must be at least 0 and below 1, not {self.beta1}")
        if self.history < 0:
            raise ConfigError(f"a history cannot hold {self.history} slopes")

    def start(self, tuned: Tuned) -> dict[str, torch.Tensor]:
        """Return the state before any direction was seen: `keys` int64 [0], `m`, `v` float32, `t` float32 []."""
        shared = torch.zeros(1 if self.history else 0, dtype=torch.float32)
        return {
            "keys": torch.zeros(0, dtype=torch.int64),
            "m": torch.zeros(0, dtype=torch.float32),
            "v": shared,
            "t": torch.zeros((), dtype=torch.float32),
        }

    def step(self, tuned: Tuned, estimate: Update, state: dict[str, torch.Tensor], rate: float = 1.0) -> None:
        """Apply one step to the handle; `rate` scales the learning rate of this step.

        Raises:
            ConfigError: if the estimate is dense.
        """
        per_direction = ("m",) if self.history else ("m", "v")
        slopes = seen(state, estimate, per_direction)
        squares = (slopes**2).sum().view(1) if self.history else slopes**2
        state["t"] = state["t"] + 1
        state["m"] = self.beta1 * state["m"] + (1 - self.beta1) * slopes
        state["v"] = BETA2 * state["v"] + (1 - BETA2) * squares
        forget(state, per_direction, self.history)
        t = float(state["t"])
        scale = state["v"].sqrt() / math.sqrt(1 - BETA2**t) + EPS
        tuned.apply(step_of(state, -self.lr * rate / (1 - self.beta1**t) * state["m"] / scale))

    def scale(self, slope: float) -> float:
        """Return a quarter of the slope: steps have the rate's size, of some four directions that are remembered."""
        return slope / 4
