"""AdamW on dense updates, by torch's own functional form so that its state is plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.optim.adamw import adamw

from edgetune.core.errors import ConfigError
from edgetune.core.part import GRADIENTS
from edgetune.core.tuned import Tuned
from edgetune.core.update import Dense, Update
from edgetune.updates.optimiser import Optimiser
from edgetune.updates.proximal import check_mu, pulled


@dataclass(frozen=True, slots=True)
class AdamW(Optimiser):
    """Adam with decoupled weight decay (off by default).

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - lr m^ / (sqrt(v^) + eps)

    Args:
        lr: learning rate, >= 0.
        weight_decay: >= 0.
        proximal: mu, >= 0: `mu (w - w_round)` is part of the gradient (`updates.proximal`).

    Raises:
        ConfigError: if a rate is negative or not finite.
    Cost: two numbers a trainable weight.
    Source: Loshchilov and Hutter 2017, arXiv:1711.05101; `torch.optim.adamw`.
    """

    lr: float
    weight_decay: float = 0.0
    proximal: float = 0.0
    name: ClassVar[str] = "adamw"
    caution: ClassVar[float] = 1 / 8
    """Momentum adds up some ten steps."""
    options: ClassVar[Mapping[str, str]] = {
        "learning_rate": "lr",
        "weight_decay": "weight_decay",
        "proximal": "proximal",
    }

    def __post_init__(self) -> None:
        if not (0 <= self.lr < float("inf") and 0 <= self.weight_decay < float("inf")):
            raise ConfigError(
                f"learning rate and weight decay must be at least 0, not {self.lr}, {self.weight_decay}"
            )
        check_mu(self.proximal)

    @property
    def needs(self) -> frozenset[str]:
        """A gradient of every weight: a slope is one number."""
        return frozenset({GRADIENTS})

    def start(self, tuned: Tuned) -> dict[str, torch.Tensor]:
        """Return zero moments and step counts, keyed `m.NAME`, `v.NAME`, `t.NAME`."""
        state: dict[str, torch.Tensor] = {}
        for name, weight in tuned.named_weights():
            state[f"m.{name}"], state[f"v.{name}"] = torch.zeros_like(weight), torch.zeros_like(weight)
            state[f"t.{name}"] = torch.zeros((), dtype=torch.float32)
        return state

    def reach(self, gradient: Update) -> float:
        """Return 1: every weight moves by about the rate, however small its gradient."""
        return 1.0

    @torch.no_grad()
    def step(self, tuned: Tuned, estimate: Update, state: dict[str, torch.Tensor], rate: float = 1.0) -> None:
        """Apply one step to the handle; `rate` scales the learning rate of this step.

        Raises:
            ConfigError: if the estimate is projected.
        """
        estimate = pulled(tuned, estimate, self.proximal)
        if not isinstance(estimate, Dense):
            raise ConfigError("AdamW needs dense gradients", hint="use sgd, momentum or adam with slopes")
        weights = {name: weight.detach().clone() for name, weight in tuned.named_weights()}
        names = list(weights)
        adamw(
            [weights[name] for name in names],
            [estimate.tensors[name] for name in names],
            [state[f"m.{name}"] for name in names],
            [state[f"v.{name}"] for name in names],
            [],
            [state[f"t.{name}"] for name in names],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self.lr * rate,
            weight_decay=self.weight_decay,
            eps=1e-8,
            maximize=False,
        )
        tuned.apply(Dense({name: weights[name] - weight.detach() for name, weight in tuned.named_weights()}))
