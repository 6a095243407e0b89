"""The exact gradient by back-propagation: the yardstick beside the forward-only estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.fused_loss import differentiated
from edgetune.core.part import DIRECTIONS, GRADIENTS, TENSORS
from edgetune.core.update import Dense, Estimate
from edgetune.estimators.estimator import Estimator


@dataclass(frozen=True, slots=True)
class Backprop(Estimator):
    """The gradient of the loss with respect to the trainable tensors.

        estimate = dL / dw

    Cost: a forward and a backward pass; activations of the whole batch and one gradient a trainable weight.
    """

    name: ClassVar[str] = "backprop"

    @property
    def directions(self) -> int:
        """1: none is taken, and a step has one key, which nobody reads."""
        return 1

    @property
    def passes(self) -> int:
        """Three: a backward pass costs two."""
        return 3

    @property
    def adds(self) -> bool:
        """Yes."""
        return True

    @property
    def gives(self) -> frozenset[str]:
        """A gradient of every weight that is tuned."""
        return frozenset({GRADIENTS})

    @property
    def needs(self) -> frozenset[str]:
        """Weights of which gradients can be taken."""
        return frozenset({TENSORS})

    @property
    def refuses(self) -> frozenset[str]:
        """Directions, which gradients have none of."""
        return frozenset({DIRECTIONS})

    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the loss and its gradient; `keys` are not used."""
        weights = dict(tuned.named_weights())
        with torch.enable_grad():
            loss = differentiated(objective)(tuned.model, batch)
            gradients = torch.autograd.grad(loss, list(weights.values()))
        return Estimate(float(loss.detach()), Dense(dict(zip(weights, gradients, strict=True))))
