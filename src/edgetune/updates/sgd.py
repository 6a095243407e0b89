"""Plain stochastic gradient descent on either kind of update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from edgetune.core.errors import ConfigError
from edgetune.core.part import FRESH, LINEAR
from edgetune.core.tuned import Tuned
from edgetune.core.update import Dense, Projected, Update
from edgetune.updates.optimiser import Optimiser
from edgetune.updates.proximal import check_mu, pulled


@dataclass(frozen=True, slots=True)
class Sgd(Optimiser):
    """One step against the estimate.

        w <- w - lr (g + mu (w - w_round))

    Args:
        lr: learning rate, >= 0; it is folded into the coefficients, so that schedules replay.
        proximal: mu, >= 0 (`updates.proximal`).

    Raises:
        ConfigError: if a number is negative or not finite.
    Cost: one number a direction, or one pass over dense tensors.
    """

    lr: float
    proximal: float = 0.0
    name: ClassVar[str] = "sgd"
    options: ClassVar[Mapping[str, str]] = {"learning_rate": "lr", "proximal": "proximal"}

    def __post_init__(self) -> None:
        if not 0 <= self.lr < float("inf"):
            raise ConfigError(f"the learning rate must be a number of at least 0, not {self.lr}")
        check_mu(self.proximal)

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "sgd with a proximal term" if self.proximal else self.name

    @property
    def gives(self) -> frozenset[str]:
        """Steps that anyone can take who hears of the slopes, if nothing else pulls."""
        return frozenset() if self.proximal else frozenset({LINEAR})

    @property
    def refuses(self) -> frozenset[str]:
        """With a proximal term directions that are moved once: it moves them back."""
        return frozenset({FRESH}) if self.proximal else frozenset()

    def start(self, tuned: Tuned) -> dict[str, torch.Tensor]:
        """Return the optimiser's state: none."""
        return {}

    def step(self, tuned: Tuned, estimate: Update, state: dict[str, torch.Tensor], rate: float = 1.0) -> None:
        """Apply one step to the handle; `rate` scales the learning rate of this step."""
        lr, estimate = self.lr * rate, pulled(tuned, estimate, self.proximal)
        if isinstance(estimate, Dense):
            tuned.apply(Dense({name: -lr * tensor for name, tensor in estimate.tensors.items()}))
        else:
            tuned.apply(estimate.scaled(-lr))

    def change(self, slopes: Projected, rates: Sequence[float]) -> Projected:
        """Return `-lr rate_i g_i`, the very numbers that `step` applies."""
        factors = np.array([-self.lr * rate for rate in rates]).astype(np.float32)
        return Projected(slopes.keys, (slopes.coefficients * factors).astype(np.float32))
