"""What estimates have in common that are slopes along all directions of a pool, taken of one gradient."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from typing import Any

import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.fused_loss import differentiated
from edgetune.core.part import DIFFERENTIATED, SLOPES
from edgetune.core.update import Estimate
from edgetune.estimators.estimator import Estimator


class PoolSlopes(Estimator):
    """The slopes along every direction of a pool, from one backward pass of some kind; kinds are frozen values.

    estimate = (1 / K) sum_k <G, z_k> z_k
    """

    __slots__ = ()

    @property
    def directions(self) -> int:
        """1: a step takes all of a pool, whichever is drawn."""
        return 1

    @property
    def adds(self) -> bool:
        """Yes: a gradient of a batch is the mean of those of its parts."""
        return True

    @property
    def gives(self) -> frozenset[str]:
        """Slopes, one number a direction."""
        return frozenset({SLOPES, DIFFERENTIATED})

    @abstractmethod
    def along(self, tuned: Any, objective: Objective, batch: Batch) -> AbstractContextManager[object]:
        """Return what is entered for the passes: it says what of a gradient goes where, and what is kept."""

    def __call__(self, tuned: Any, objective: Objective, batch: Batch, *keys: int) -> Estimate:
        """Return the loss and the estimate; `keys` are not used."""
        with self.along(tuned, objective, batch), torch.enable_grad(), tuned.slopes() as slopes:
            loss = differentiated(objective)(tuned.model, batch)
            torch.autograd.backward(loss)
        return Estimate(float(loss.detach()), slopes())
