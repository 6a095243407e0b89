"""What every local optimiser can do."""

from __future__ import annotations

from abc import abstractmethod

import torch

from edgetune.core.part import Part
from edgetune.core.tuned import Tuned
from edgetune.core.update import Update


class Optimiser(Part):
    """From an estimate to a step; implementations are frozen values, their state is plain tensors by name."""

    __slots__ = ()
    lr: float

    @abstractmethod
    def start(self, tuned: Tuned) -> dict[str, torch.Tensor]:
        """Return the state before the first step."""

    @abstractmethod
    def step(self, tuned: Tuned, estimate: Update, state: dict[str, torch.Tensor], rate: float = 1.0) -> None:
        """Apply one step to the handle; `rate` scales the learning rate of this step."""
