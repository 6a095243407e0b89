"""Layers by the size of their gradients, within every device's budget and alike where that is wanted (FedSelFT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.errors import ConfigError
from edgetune.core.pieces import Layers
from edgetune.core.tuned import Tuned
from edgetune.survey.assignment import assign
from edgetune.survey.survey import Masks, Memory, Scores, Survey


@dataclass(frozen=True, slots=True)
class GradientNorms(Survey):
    """Every device trains the layers with the largest gradients that it can pay for; the server weighs in agreement.

        s_il = mean over batches of |dL_i / dw_l|^2
        max  sum_i sum_l m_il s_il / s  -  lambda sum_{i<j} |m_i - m_j|^2,   cost(m_i) <= R_i
        cost(m) = ((L - lowest(m)) + |m|) / 2

    s is the devices' mean of sum_l s_il, so that lambda has no unit: 0 lets every device choose for itself, a large one
    makes all choose alike. A backward pass goes down to the lowest layer whatever lies above it, hence the cost: 1 is
    the top layer alone, L is everything.

    Args:
        budget: R, cost in layers, at least 1; a device i has R + (i modulo (spread + 1)).
        spread: how much more the best-equipped devices can pay, at least 0.
        consistency: lambda, at least 0.
        batches: of a device's records that are measured, at least 1.

    Raises:
        ConfigError: if a number is out of its range.
    Cost: a forward and a backward pass a batch; L numbers up, L bits down.
    Source: Sun, Xie, Ding, Li and Zhang 2024, arXiv:2408.15600; hiyuchang/fed_sel_tune (whose cost is |m|, lambda 0).
    """

    budget: int = 2
    spread: int = 0
    consistency: float = 0.0
    batches: int = 1
    options: ClassVar[Mapping[str, str]] = {
        "layer_budget": "budget",
        "budget_spread": "spread",
        "consistency": "consistency",
        "survey_batches": "batches",
    }

    def __post_init__(self) -> None:
        if self.budget < 1 or self.spread < 0 or self.batches < 1 or not 0 <= self.consistency < float("inf"):
            raise ConfigError(
                "choosing layers needs a budget and batches of at least 1, a spread and a consistency of at least 0, "
                f"not {self.budget}, {self.batches}, {self.spread}, {self.consistency}"
            )

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "choosing layers by their gradients"

    def due(self, round: int, memory: Memory) -> bool:
        """Before every round."""
        return True

    def size(self, layers: int) -> int:
        """One number a layer."""
        return layers

    def measure(self, tuned: Tuned, layers: Layers, batches: Iterator[Batch], objective: Objective) -> Scores:
        """Return the mean squared norm of every layer's gradient."""
        weights, total = dict(tuned.named_weights()), np.zeros(len(layers))
        device = next(iter(weights.values())).device
        for _ in range(self.batches):
            with torch.enable_grad():
                loss = objective(tuned.model, next(batches).to(device))
                found = torch.autograd.grad(loss, list(weights.values()))
            gradients = dict(zip(weights, found, strict=True))
            total += [
                sum(float(piece.of(gradients[piece.name]).double().square().sum()) for piece in layer)
                for layer in layers
            ]
        with np.errstate(over="ignore"):  # a norm beyond float32 becomes infinite and is refused
            return (total / self.batches).astype(np.float32)

    def choose(
        self,
        devices: Sequence[int],
        scores: Mapping[int, Scores],
        examples: Mapping[int, int],
        layers: int,
        memory: Memory,
    ) -> Masks:
        """Return the layers of those that answered."""
        told = [device for device in devices if device in scores]
        if not told:
            return {}
        table = np.stack([scores[device].astype(np.float64) for device in told])
        mean = table.sum() / len(told)
        budgets = [min(self.budget + device % (self.spread + 1), layers) for device in told]
        masks = assign(table / mean if mean > 0 else table, budgets, self.consistency)
        return dict(zip(told, masks, strict=True))
