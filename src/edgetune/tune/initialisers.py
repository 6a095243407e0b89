"""Where low-rank factors begin if not at a random A and B = 0: computed by peft on a copy of one layer at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from edgetune.core.batch import Batch
from edgetune.core.errors import ModelError
from edgetune.core.keys import digest64
from edgetune.core.residual import Factors
from edgetune.tune.initial import normal
from edgetune.tune.placement import peft_for

LayerFactors = dict[str, Factors]
"""B and A by adapted layer."""


class Initialiser(ABC):
    """The initial factors of a run, computed once, at its server, and sent to everybody: no device computes them.

    Where B A is not 0, the run's state also holds R = -B A for the base, so that it starts as the base:

        y = (W - s B_0 A_0) x + s B A x
    """

    __slots__ = ()
    name: ClassVar[str] = ""
    """What a recipe calls it."""
    cancels: ClassVar[bool] = False
    """Whether B A = 0, so that nothing need be taken off the base."""
    sampled: ClassVar[bool] = False
    """Whether it looks at records: the server's own sample."""
    multiple: ClassVar[int] = 1
    """What the rank must be a multiple of."""

    @abstractmethod
    def factors(
        self, placed: Any, like: Mapping[str, Factors], seed: int, sample: Sequence[Batch]
    ) -> LayerFactors:
        """Return B and A of every adapted layer, float32 on the CPU.

        Args:
            placed: peft's model, whose factors make no difference yet; it is left as it is.
            like: its factors by layer.
            seed: of what is drawn at random.
            sample: the server's own records; may be empty unless `sampled`.

        Raises:
            ModelError: if a layer is too small for the rank.
            ConfigError: if there are no records and some are needed.
        """


@dataclass(frozen=True, slots=True)
class Gaussian(Initialiser):
    """A normal, B = 0.

    A_ij ~ N(0, 1 / r^2)
    """

    name: ClassVar[str] = "gaussian"
    cancels: ClassVar[bool] = True

    def factors(
        self, placed: Any, like: Mapping[str, Factors], seed: int, sample: Sequence[Batch]
    ) -> LayerFactors:
        """Draw A as peft's `gaussian` does, from the seed and the layer's name."""
        return {
            stem: (torch.zeros(left.shape), normal(seed, stem, right.shape, 1 / right.shape[0]))
            for stem, (left, right) in like.items()
        }


class OfWeights(Initialiser):
    """An initialiser of peft that looks at a layer's weights alone."""

    __slots__ = ()

    def factors(
        self, placed: Any, like: Mapping[str, Factors], seed: int, sample: Sequence[Batch]
    ) -> LayerFactors:
        """Let peft initialise a copy of every layer."""
        return {stem: by_peft(placed, stem, self.name, seed) for stem in like}


@dataclass(frozen=True, slots=True)
class Pissa(OfWeights):
    """PiSSA: the principal singular part of W is tuned, the rest is the base.

        W = U S V^T;   B = U_r sqrt(S_r / s),   A = sqrt(S_r / s) V_r^T,   so that s B A is W's best approximation

    Cost: a full singular value decomposition a layer.
    Source: Meng et al. 2024, arXiv:2404.02948.
    """

    name: ClassVar[str] = "pissa"


@dataclass(frozen=True, slots=True)
class Olora(OfWeights):
    """OLoRA: an orthonormal B.

        W = Q R;   B = first r columns of Q,   A = first r rows of R

    Cost: a QR decomposition a layer.
    Source: Büyükakyüz 2024, arXiv:2406.01775.
    """

    name: ClassVar[str] = "olora"


@dataclass(frozen=True, slots=True)
class Orthogonal(OfWeights):
    """Both factors random, in orthogonal halves of the rank's space: neither is zero, their product is.

        Q [r, r] orthogonal;   B = Y^T Q_even / 10,   A = Q_odd^T X / 10,   X, Y normal [r / 2, ...]

    Source: peft's `orthogonal`, datta0.github.io/posts/rethink-lora-init.
    """

    name: ClassVar[str] = "orthogonal"
    cancels: ClassVar[bool] = True
    multiple: ClassVar[int] = 2


def by_peft(
    placed: Any, stem: str, how: str, seed: int, gradient: torch.Tensor | None = None, **settings: Any
) -> Factors:
    """Return what peft's `init_lora_weights` makes of a copy of one layer, in float32 on the CPU.

    peft changes the weights that it initialises from, draws from everybody's generator and mistakes the two axes of
    GPT-2's layers in places: none of that reaches the model.

    Args:
        placed: peft's model.
        stem: name of the adapted layer.
        how: peft's name of the initialiser.
        seed: of what peft draws, beside the layer's name.
        gradient: of the loss by the layer's weights [outputs, inputs], where peft needs one.
        settings: further ones of peft's configuration.

    Raises:
        ModelError: if the factors do not have the adapter's rank: the layer is too small for it.
    """
    adapted = placed.get_submodule(stem)
    rank, weight = adapted.r["default"], stored(adapted)
    with peft_for(f"the initialiser {how}") as peft, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(digest64(seed, "initialiser", stem) >> 1)
        copy = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        copy.weight = nn.Parameter(weight.clone())
        if gradient is not None:
            copy._peft_loraga_grad = gradient
        config = peft.LoraConfig(
            r=rank, lora_alpha=adapted.lora_alpha["default"], target_modules=["copy"],
            init_lora_weights=how, **settings,
        )  # fmt: skip
        try:
            made = peft.inject_adapter_in_model(config, nn.ModuleDict({"copy": copy}))["copy"]
        except RuntimeError as error:
            raise _too_small(stem, weight, rank, how) from error
    left, right = made.lora_B["default"].weight.detach(), made.lora_A["default"].weight.detach()
    if (left.shape[1], right.shape[0]) != (rank, rank):
        raise _too_small(stem, weight, rank, how)
    return left.clone().contiguous(), right.clone().contiguous()


def stored(adapted: Any) -> torch.Tensor:
    """Return the weights beneath an adapter, float32 [outputs, inputs] on the CPU."""
    weight: torch.Tensor = adapted.base_layer.weight.detach().float().cpu()
    return weight.T.contiguous() if adapted.fan_in_fan_out else weight  # GPT-2 keeps [inputs, outputs]


def _too_small(stem: str, weight: torch.Tensor, rank: int, how: str) -> ModelError:
    size = " x ".join(map(str, weight.shape))
    return ModelError(
        f"a layer of {size} has too few directions for {how} at rank {rank}", where=stem, hint="a lower rank"
    )
