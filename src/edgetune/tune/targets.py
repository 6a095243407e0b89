"""What is tuned: all weights, or what peft places; through projected updates or dense ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError
from edgetune.core.part import (
    ALL_WEIGHTS,
    DIRECTIONS,
    FACTORS,
    FIXED_FACTOR,
    GRADIENTS,
    PROMPTS,
    TAKEN_OFF,
    TENSORS,
    by_name,
)
from edgetune.core.quantised import BaseTensor
from edgetune.core.residual import folded, pairs
from edgetune.core.residual import named as residuals_named
from edgetune.core.tuned import Space
from edgetune.core.update import Dense
from edgetune.tune.dense import DenseTuned
from edgetune.tune.handles import projected, streamed
from edgetune.tune.informed import Eva, LoraGa
from edgetune.tune.initialisers import Gaussian, Initialiser, Olora, Orthogonal, Pissa
from edgetune.tune.own import OwnPlaced, need_float32
from edgetune.tune.peft_placed import PeftPlaced
from edgetune.tune.placed import Placed
from edgetune.tune.placement import place_lora, place_prefix
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.scaled import ByNorm, ByTable, Scaling
from edgetune.tune.target import Placing

INITIALISERS: dict[str, Initialiser | None] = {
    "default": None,
    **{one.name: one for one in (Gaussian(), Orthogonal(), Pissa(), Olora(), Eva(), LoraGa())},
}
"""Where LoRA begins, by name; the default's A is the seed's, and its B zero."""


@dataclass(frozen=True, slots=True)
class FullProjected(Placing):
    """All weights, along directions or by gradients.

    Args:
        keep_direction: draw each direction once a step and keep it (classical ZO-SGD) instead of drawing it anew
            for every read (MeZO).
        scaling: how tensors of different size are perturbed and moved; alike if not given.
    """

    keep_direction: bool = False
    scaling: Scaling | None = None
    name: ClassVar[str] = "full"
    options: ClassVar[Mapping[str, str]] = {"layer_scale": "scaling"}

    @property
    def title(self) -> str:
        """What a message calls it."""
        return "tuning all weights"

    @property
    def gives(self) -> frozenset[str]:
        """All of them."""
        return frozenset({TENSORS, ALL_WEIGHTS})

    @property
    def needs(self) -> frozenset[str]:
        """Directions, where something is said of them."""
        return frozenset({DIRECTIONS} if self.keep_direction or self.scaling else ())

    @property
    def streams(self) -> bool:
        """Yes, alike and along directions that are drawn anew."""
        return not self.keep_direction and self.scaling is None

    def stream(self, model: PreTrainedModel, space: Space, base: Mapping[str, BaseTensor]) -> ProjectedTuned:
        """Return the handle over a base that is never formed as a whole."""
        return streamed(model, space, base)

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

    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Choose all weights; seed and base play no part."""
        return OwnPlaced(model, lambda _: True, {"peft_type": "FULL"})

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> FullProjected:
        """Return the target of a ledger."""
        return cls()

    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> DenseTuned | ProjectedTuned:
        """Return the tuned handle; with directions, `base` saves a copy of the weights.

        Raises:
            ModelError: if gradients would move half-precision weights.
        """
        if space is None:
            return DenseTuned(need_float32(self.place(model, seed, base)))
        if self.scaling is None:
            return projected(model, space, base)
        weights = [(name, weight) for name, weight in model.named_parameters() if weight.is_floating_point()]
        stored = (
            weights if base is None else base.items()
        )  # the model may be narrower than what it was stored as
        return projected(model, space, base, self.scaling.factors(stored))


@dataclass(frozen=True, slots=True)
class Lora(Placing):
    """Low-rank adapters on all linear layers but the head.

        y = W x + (alpha / rank) B A x,   B = 0 at the start

    Args:
        rank: r, at least 1.
        alpha: scaling numerator, > 0.
        freeze_a: A keeps the seed's values and only B is tuned (FFA-LoRA): half the numbers, and a sum of products
            is the product of the sum.
        initialiser: where A and B begin instead, a name of `tune.initialisers`: computed once, at the server, and sent
            with every message, with -B A for the base beneath where B A is not 0.

    Raises:
        ConfigError: if a number is out of its range, or no initialiser has that name.
    Source: Hu et al. 2021, arXiv:2106.09685; Sun et al. 2024, arXiv:2403.12313 (A frozen).
    """

    rank: int = 8
    alpha: float = 16.0
    freeze_a: bool = False
    initialiser: str = "default"
    name: ClassVar[str] = "lora"
    options: ClassVar[Mapping[str, str]] = {
        "rank": "rank",
        "alpha": "alpha",
        "freeze_a": "freeze_a",
        "initialiser": "initialiser",
    }

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(
                f"LoRA needs a rank of at least 1 and a positive alpha, not {self.rank}, {self.alpha}"
            )
        chosen = by_name(self.initialiser, INITIALISERS, "initialiser")
        if chosen is not None and self.rank % chosen.multiple:
            raise ConfigError(
                f"the initialiser {self.initialiser} needs a rank that is a multiple of {chosen.multiple}, "
                f"not {self.rank}"
            )

    @property
    def title(self) -> str:
        """What a message calls it."""
        return f"lora with the initialiser {self.initialiser}" if self.ships else self.name

    @property
    def gives(self) -> frozenset[str]:
        """Few tensors, whether they are pairs of factors that both move, and whether their start is off the base."""
        chosen = INITIALISERS[self.initialiser]
        beneath = {TAKEN_OFF} if chosen is not None and not chosen.cancels else set[str]()
        return frozenset({TENSORS, FIXED_FACTOR if self.freeze_a else FACTORS} | beneath)

    @property
    def needs(self) -> frozenset[str]:
        """Gradients, if the start is sent: along directions only coefficients are, relative to the seed's start."""
        return frozenset({GRADIENTS} if self.ships else ())

    @property
    def refuses(self) -> frozenset[str]:
        """A fixed A, if the start is sent: nobody sends that A."""
        return frozenset({FIXED_FACTOR} if self.ships else ())

    @property
    def factor_scale(self) -> float:
        """Alpha over rank."""
        return self.alpha / self.rank

    @property
    def ships(self) -> bool:
        """Whether the start is more than a function of the seed."""
        return INITIALISERS[self.initialiser] is not None

    @property
    def sampled(self) -> bool:
        """Whether the initialiser looks at records."""
        chosen = INITIALISERS[self.initialiser]
        return chosen is not None and chosen.sampled

    def start(self, tuned: DenseTuned, seed: int, sample: Sequence[Batch]) -> Dense:
        """Return the initialiser's factors, and what they are taken off the base.

        Raises:
            ModelError, ConfigError: as `Initialiser.factors`.
        """
        chosen, before = INITIALISERS[self.initialiser], tuned.state()
        if chosen is None:
            return before
        named = pairs(before.tensors)
        like = {stem: (before.tensors[b], before.tensors[a]) for stem, (b, a) in named.items()}
        found = chosen.factors(tuned.placed.model, like, seed, sample)
        after = {named[stem][side]: factors[side] for stem, factors in found.items() for side in (0, 1)}
        typed = {name: one.to(before.tensors[name].dtype) for name, one in after.items()}
        if chosen.cancels:
            return Dense(typed)
        taken = {stem: (-typed[b].float(), typed[a].float().clone()) for stem, (b, a) in named.items()}
        return folded(Dense(typed | residuals_named(before, taken)))

    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Put the factors on the model; a ledger needs the seed where A does not travel."""
        placed = place_lora(model, rank=self.rank, alpha=self.alpha, seed=seed, freeze_a=self.freeze_a)
        said: dict[str, Any] = {"seed": seed} | ({"freeze_a": True} if self.freeze_a else {})
        said |= {"initialiser": self.initialiser} if self.ships else {}
        return PeftPlaced(placed, said, base)

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> Lora:
        """Return the target of a ledger."""
        return cls(said["r"], said["lora_alpha"], bool(said.get("freeze_a", False)))


@dataclass(frozen=True, slots=True)
class Prefix(Placing):
    """Trainable keys and values before the first token of every attention layer.

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
    def gives(self) -> frozenset[str]:
        """Few tensors, which gradients reach: prompts."""
        return frozenset({TENSORS, PROMPTS})

    @property
    def merges(self) -> bool:
        """No: keys and values are no weights."""
        return False

    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Put the prefix on the model; `base` is not used."""
        placed = place_prefix(model, tokens=self.tokens, scale=self.scale, seed=seed)
        return PeftPlaced(placed, {"seed": seed, "initial_scale": self.scale})

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> Prefix:
        """Return the target of a ledger."""
        return cls(said["num_virtual_tokens"], said["initial_scale"])
