"""A model's own parameters as what is tuned: the matrices of linear layers, those that write, or the biases."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.part import TENSORS, WRITES
from edgetune.core.quantised import BaseTensor
from edgetune.core.skips import MATRICES, head_of, writers
from edgetune.core.tuned import Space
from edgetune.tune.dense import DenseTuned
from edgetune.tune.folded_own import FoldedOwn
from edgetune.tune.moved import plain_matrices
from edgetune.tune.placed import Placed
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.projected_adapter import ProjectedAdapter
from edgetune.tune.target import Placing
from edgetune.tune.walk import probe_batch

if TYPE_CHECKING:
    from typing_extensions import Self


class OwnPlaced(Placed):
    """Parameters that the model has anyway; nothing is put on it.

    Args:
        model: the base, which becomes the tuned model.
        chosen: whether a parameter of a name is tuned.
        said: what a ledger says.
    """

    def __init__(
        self, model: PreTrainedModel, chosen: Callable[[str], bool], said: Mapping[str, Any]
    ) -> None:
        weights = {
            name: one for name, one in model.named_parameters() if one.is_floating_point() and chosen(name)
        }
        super().__init__(model, weights, said)
        self._model = model

    def plain(self) -> PreTrainedModel:
        """Return the model: its weights are the tuned ones."""
        self.remove()
        return self._model

    def remove(self) -> None:
        """Let the weights need no gradients again."""
        for weight in self.weights.values():
            weight.requires_grad_(False)


def need_float32(placed: Placed) -> Placed:
    """Refuse weights to which gradients' steps would be added in half precision, where small ones are lost.

    Raises:
        ModelError: naming the type.
    """
    narrow = {weight.dtype for weight in placed.weights.values()} - {torch.float32}
    if narrow:
        kind = str(narrow.pop()).removeprefix("torch.")
        raise ModelError(
            f"weights of the type {kind} lose the steps that gradients take",
            hint="--set model.dtype=float32, or tune an adapter (method.target = lora)",
        )
    return placed


class OwnWeights(Placing):
    """A target that is some of a model's own parameters, the same ones wherever its ledger is opened."""

    __slots__ = ()
    kind: ClassVar[str]
    """What a ledger calls it."""

    @abstractmethod
    def chosen(self, model: nn.Module) -> set[str]:
        """Return the names of the parameters.

        Raises:
            ModelError: if the model has none.
        """

    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Choose the parameters; seed and base play no part.

        Raises:
            ModelError: as `chosen`.
        """
        chosen = self.chosen(model)
        return OwnPlaced(model, lambda name: name in chosen, {"peft_type": self.kind})

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> Self:
        """Return the target of a ledger."""
        return cls()

    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> DenseTuned | ProjectedTuned:
        """Return the tuned handle: along a pool of rank one, one that writes to no matrix and forms no gradient of any.

        With other directions, `base` saves a copy of the weights.

        Raises:
            ModelError: as `place` or the handle, or if gradients would move half-precision weights.
        """
        placed = self.place(model, seed, base)
        if space is None:
            return DenseTuned(need_float32(placed))
        moves = space.moves({})
        if moves is not None and moves.sums and placed.weights.keys() <= plain_matrices(model):
            return FoldedOwn(placed, space, moves, base)
        return ProjectedAdapter(placed, space, base)


@dataclass(frozen=True, slots=True)
class BitFit(OwnWeights):
    """The model's biases; where it has none (Llama, Gemma), the scales of its norms.

        y = W x + b: b is tuned;   y = g x / |x|: g is tuned

    Cost: a thousandth of the weights or less.
    Source: Ben Zaken et al. 2022, arXiv:2106.10199, for models with biases.
    """

    name: ClassVar[str] = "bitfit"
    kind: ClassVar[str] = "BITFIT"

    def chosen(self, model: nn.Module) -> set[str]:
        """Return the biases, or where there are none, the other vectors."""
        named = {name: one for name, one in model.named_parameters() if one.is_floating_point()}
        biases = {name for name in named if name.rsplit(".", 1)[-1] == "bias"}
        found = biases or {name for name, one in named.items() if one.ndim == 1}
        if not found:
            raise ModelError("this model has neither biases nor scales of norms", hint="tune lora")
        return found


class OwnMatrices(OwnWeights):
    """Own parameters that are matrices: along a pool of rank one nothing is made of their size."""

    __slots__ = ()

    @property
    def streams(self) -> bool:
        """Yes: slopes along a pool of rank one need no gradient of a matrix, which may stay where it is stored."""
        return True

    def stream(self, model: PreTrainedModel, space: Space, base: Mapping[str, BaseTensor]) -> ProjectedTuned:
        """Return the handle over a base that is never formed as a whole.

        Raises:
            ConfigError: if directions are not a pool of rank one.
            ModelError: as `chosen`, or as the handle.
        """
        moves = space.moves({})
        if moves is None or not moves.sums:
            raise ConfigError(
                "a gradient of a matrix that is streamed is seen along a pool of rank one alone",
                where="method.directions",
                hint="method.directions = rank_one_pool, or residency fused",
            )
        return FoldedOwn(self.place(model, 0), space, moves, base, hold=False)


@dataclass(frozen=True, slots=True)
class LinearLayers(OwnMatrices):
    """The matrices of linear layers, and neither norms, biases nor embeddings: what a low-rank adapter can hold.

        y = W x + b: W is tuned

    A head that is the embedding table once more is left out too, unless it is asked for; then that table is tuned in
    both places. Without it, the ledger of directions of rank one is an adapter without loss (`edgetune adapter`).

    Args:
        tied_head: whether the head is tuned even where it is the embedding table.

    Cost: as all weights.
    """

    tied_head: bool = False
    name: ClassVar[str] = "linear"
    options: ClassVar[Mapping[str, str]] = {"tied_head": "tied_head"}
    kind: ClassVar[str] = "LINEAR"

    def chosen(self, model: nn.Module) -> set[str]:
        """Return the matrices."""
        tables = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
        linear = {id(one.weight) for one in model.modules() if isinstance(one, MATRICES)}
        kept = {id(one.weight) for one in [head_of(model)] if one is not None and self.tied_head}
        ids = (linear - tables) | kept
        found = {name for name, one in model.named_parameters() if id(one) in ids and one.is_floating_point()}
        if not found:
            raise ModelError("this model has no linear layers", hint="tune all weights")
        return found

    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Choose the matrices; a ledger says whether the head is one of them anyhow.

        Raises:
            ModelError: as `chosen`.
        """
        chosen = self.chosen(model)
        said = {"peft_type": self.kind} | ({"tied_head": True} if self.tied_head else {})
        return OwnPlaced(model, lambda name: name in chosen, said)

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> Self:
        """Return the target of a ledger."""
        return cls(tied_head=bool(said.get("tied_head", False)))


@dataclass(frozen=True, slots=True)
class Writers(OwnMatrices):
    """The matrices that write into the residual stream, and the head: what gradients along skip connections reach.

        h <- h + W x: W is tuned;   logits = H norm(h): H is tuned

    Of a Llama block `o_proj` and `down_proj`; of any other, the layers whose output reaches the logits through no other
    layer (`core.skips.writers`). A head that is the embedding table is tuned in both places. A ledger names all, so
    that it is opened without a look at the model.

    Args:
        head: whether the head is tuned; without it the ledger of a pool of rank one is an adapter without loss.
        tensors: their names, where they are known.

    Cost: about two fifths of the weights of a block.
    Source: who writes into the stream: Elhage et al. 2021, A Mathematical Framework for Transformer Circuits.
    """

    head: bool = True
    tensors: tuple[str, ...] = ()
    name: ClassVar[str] = "writers"
    options: ClassVar[Mapping[str, str]] = {"head": "head"}
    kind: ClassVar[str] = "WRITERS"

    @property
    def gives(self) -> frozenset[str]:
        """Weights whose gradients pass through no other layer."""
        return frozenset({TENSORS, WRITES})

    def chosen(self, model: nn.Module) -> set[str]:
        """Return the matrices, the head's among them.

        Raises:
            ModelError: if no layer writes into a residual stream, or a tensor that was named is none of the model's.
        """
        floats = {name: one for name, one in model.named_parameters() if one.is_floating_point()}
        if self.tensors:
            missing = sorted(set(self.tensors) - floats.keys())
            if missing:
                raise ModelError("the ledger tunes a tensor that this model has not", where=missing[0])
            return set(self.tensors)
        batch, head = probe_batch(model), head_of(model)
        names = writers(model, batch.input_ids) if batch is not None else ()
        if not names:
            raise ModelError("no linear layer of this model writes into a residual stream", hint="tune lora")
        modules = [*map(model.get_submodule, names), *([head] if self.head and head is not None else [])]
        ids = {id(one.weight) for one in modules}
        return {name for name, one in floats.items() if id(one) in ids}

    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Choose the matrices; a ledger says which.

        Raises:
            ModelError: as `chosen`.
        """
        chosen = self.chosen(model)
        return OwnPlaced(
            model, lambda name: name in chosen, {"peft_type": self.kind, "tensors": sorted(chosen)}
        )

    @classmethod
    def described(cls, said: Mapping[str, Any]) -> Self:
        """Return the target of a ledger.

        Raises:
            KeyError: if it names no tensors.
        """
        return cls(tensors=tuple(said["tensors"]))
