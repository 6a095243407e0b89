"""What every choice of weights to tune can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from edgetune.core.part import Part
from edgetune.core.tuned import Space, Tuned


class Target(Part):
    """What is tuned; implementations are frozen values."""

    __slots__ = ()

    @abstractmethod
    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> Tuned:
        """Return the tuned handle of a model.

        Args:
            model: the base, which becomes the tuned model.
            space: the directions; None for gradients.
            seed: of initial values.
            base: the stored weights; where they are needed and not given, a copy is kept.
        """
