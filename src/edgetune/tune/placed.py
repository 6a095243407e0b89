"""Trainable tensors that were put on a model, whoever placed them: what a tuned handle moves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.core.errors import ModelError
from edgetune.core.pieces import Layer
from edgetune.tune.layers import by_depth


class Placed(ABC):
    """A model and the tensors of it that are tuned.

    Args:
        model: the module to run.
        weights: the tuned tensors by name; only they require gradients.
        said: what a ledger says of them as plain JSON values, enough to place them again.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], said: Mapping[str, Any]
    ) -> None:
        self.model, self.weights, self._said = model, dict(weights), dict(said)
        for weight in self.weights.values():
            weight.requires_grad_(True)

    def configuration(self) -> dict[str, Any]:
        """Return what a ledger says of the tensors."""
        return dict(self._said)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The tuned tensors by depth."""
        return by_depth(self.model, self.weights)

    @abstractmethod
    def plain(self) -> PreTrainedModel:
        """Return the model with everything folded in that can be; the placement ends here."""

    @abstractmethod
    def remove(self) -> None:
        """Leave the base as it was, its own weights aside; the placement ends here."""

    def carry(self, residuals: Mapping[str, torch.Tensor]) -> None:
        """Add residuals to the frozen base.

        Args:
            residuals: as `core.residual` names them; none takes all off.

        Raises:
            ModelError: if there are some, and no low-rank factors above which they could lie.
        """
        if residuals:
            raise ModelError(
                "these tensors are no low-rank factors, so nothing is added to the base beneath them"
            )
