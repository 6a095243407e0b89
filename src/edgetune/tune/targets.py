"""What is tuned: all weights through projected updates, or an adapter through projected or dense ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.part import DIRECTIONS, TENSORS, by_name
from edgetune.core.tuned import Space
from edgetune.tune.adapter import AdapterTuned
from edgetune.tune.placement import place_lora, place_prefix
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.projected_adapter import ProjectedAdapter
from edgetune.tune.scaled import ByNorm, ByTable, Scaling
from edgetune.tune.target import Target


@dataclass(frozen=True, slots=True)
class FullProjected(Target):
    """All weights; the update is a sum of directions.

    Args:
        keep_direction: draw each direction once a step and keep it (classical ZO-SGD) instead of drawing it anew
            for every read (MeZO).
        scaling: how tensors of different size are perturbed and moved; alike if not given.
    """

    keep_direction: bool = False
    scaling: Scaling | None = None
    options: ClassVar[Mapping[str, str]] = {"layer_scale": "scaling"}

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "tuning all weights"

    @property
    def needs(self) -> frozenset[str]:
        """Directions to move along."""
        return frozenset({DIRECTIONS})

    def settings(self) -> dict[str, Any]:
        """Return the layer scale as a recipe writes it, if there is one."""
        if isinstance(self.scaling, ByTable):
            return {"layer_scale": dict(self.scaling.table)}
        return {} if self.scaling is None else {"layer_scale": "parameter_norm"}

    def with_option(self, option: str, value: object) -> FullProjected:
        """Return the target with another layer scale: its name, or a table of factors."""
        if isinstance(value, Mapping):
            table = tuple((str(part), float(str(scale))) for part, scale in value.items())
            return replace(self, scaling=ByTable(table))
        return replace(self, scaling=by_name(str(value), {"parameter_norm": ByNorm()}, "layer scale"))

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
        if self.scaling is None:
            return ProjectedTuned(model, space, base=base)
        weights = [(name, weight) for name, weight in model.named_parameters() if weight.is_floating_point()]
        stored = (
            weights if base is None else base.items()
        )  # the model may be narrower than what it was stored as
        return ProjectedTuned(model, space, base=base, scales=self.scaling.factors(stored))


@dataclass(frozen=True, slots=True)
class Lora(Target):
    """Low-rank adapters on all linear layers but the head.

    Args:
        rank: r, at least 1.
        alpha: scaling numerator, > 0.
    """

    rank: int = 8
    alpha: float = 16.0
    name: ClassVar[str] = "lora"
    options: ClassVar[Mapping[str, str]] = {"rank": "rank", "alpha": "alpha"}

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(
                f"LoRA needs a rank of at least 1 and a positive alpha, not {self.rank}, {self.alpha}"
            )

    @property
    def gives(self) -> frozenset[str]:
        """Few tensors, which may be tuned along directions or by gradients."""
        return frozenset({TENSORS})

    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> AdapterTuned | ProjectedAdapter:
        """Return the tuned handle, projected if there are directions; `base` is not used, it stays where it is."""
        if space is None:
            return AdapterTuned(model, rank=self.rank, alpha=self.alpha, seed=seed)
        placed = place_lora(model, rank=self.rank, alpha=self.alpha, seed=seed)
        return ProjectedAdapter(placed, space, {"seed": seed})


@dataclass(frozen=True, slots=True)
class Prefix(Target):
    """Trainable keys and values before the first token of every attention layer; the update is a sum of directions.

    Args:
        tokens: length of the prefix, at least 1.
        scale: standard deviation of the initial values, at least 0. peft's own is 1, which costs the embedded model
            0.05 nats before the first step; at 0.1 nothing is lost (docs/log.md).
    """

    tokens: int = 5
    scale: float = 0.1
    name: ClassVar[str] = "prefix"
    options: ClassVar[Mapping[str, str]] = {"prefix_tokens": "tokens"}

    def __post_init__(self) -> None:
        if self.tokens < 1 or not 0 <= self.scale < float("inf"):
            raise ConfigError(
                f"a prefix needs at least one token and a scale of at least 0, not {self.tokens}, {self.scale}"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Directions to move along."""
        return frozenset({DIRECTIONS})

    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> ProjectedAdapter:
        """Return the tuned handle; `space` is required, `base` is not used."""
        if space is None:
            raise ConfigError("a projected update needs directions")
        placed = place_prefix(model, tokens=self.tokens, scale=self.scale, seed=seed)
        return ProjectedAdapter(placed, space, {"seed": seed, "initial_scale": self.scale})


def reopen(model: PreTrainedModel, space: Space, adapter: Mapping[str, Any]) -> ProjectedTuned:
    """Return the handle that a ledger's adapter configuration describes (see `ProjectedAdapter.adapter`).

    Raises:
        ModelError: if the configuration is of no known adapter, or lacks a setting.
    """
    try:
        seed = int(adapter["seed"])
        if adapter["peft_type"] == "LORA":
            placed = place_lora(model, rank=adapter["r"], alpha=adapter["lora_alpha"], seed=seed)
            return ProjectedAdapter(placed, space, {"seed": seed})
        if adapter["peft_type"] == "PREFIX_TUNING":
            return Prefix(adapter["num_virtual_tokens"], adapter["initial_scale"]).open(model, space, seed)
    except KeyError as error:
        raise ModelError(f"the ledger's adapter lacks the setting {error}") from error
    raise ModelError(f"no adapter of the kind {adapter['peft_type']!r} can be rebuilt")
