"""What is tuned: all weights through projected updates, or an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from edgetune.core.errors import ConfigError
from edgetune.core.tuned import Space
from edgetune.tune.adapter import AdapterTuned
from edgetune.tune.projected import ProjectedTuned


@dataclass(frozen=True, slots=True)
class FullProjected:
    """All weights; the update is a sum of directions.

    Args:
        keep_direction: draw each direction once a step and keep it (classical ZO-SGD) instead of drawing it anew
            for every read (MeZO).
    """

    keep_direction: bool = False

    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> ProjectedTuned:
        """Return the tuned handle; `space` is required, `base` saves a copy of the weights."""
        if space is None:
            raise ConfigError("a projected update needs directions")
        return ProjectedTuned(model, space, base=base)


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters on all linear layers but the head.

    Args:
        rank: r, at least 1.
        alpha: scaling numerator, > 0.
    """

    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(
                f"LoRA needs a rank of at least 1 and a positive alpha, not {self.rank}, {self.alpha}"
            )

    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> AdapterTuned:
        """Return the tuned handle; `space` and `base` are not used, the base weights stay where they are."""
        return AdapterTuned(model, rank=self.rank, alpha=self.alpha, seed=seed)


Target = FullProjected | Lora
