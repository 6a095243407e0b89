"""The exact gradient by back-propagation: the yardstick beside the forward-only estimates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.tuned import Tuned
from edgetune.core.update import Dense, Estimate


@dataclass(frozen=True, slots=True)
class Backprop:
    """The gradient of the loss with respect to the trainable tensors.

        estimate = dL / dw

    Cost: a forward and a backward pass; activations of the whole batch and one gradient a trainable weight.
    """

    directions: ClassVar[int] = 1

    def __call__(self, tuned: Tuned, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the loss and its gradient; `keys` are not used."""
        weights = dict(tuned.named_weights())
        with torch.enable_grad():
            loss = objective(tuned.model, batch)
            gradients = torch.autograd.grad(loss, list(weights.values()))
        return Estimate(float(loss.detach()), Dense(dict(zip(weights, gradients, strict=True))))
