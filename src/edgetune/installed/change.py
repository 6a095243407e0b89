"""What a ledger does to one stored weight: nothing else of the model is in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from edgetune.core.quantised import BlockGrid, whole_blocks
from edgetune.core.tuned import Adds
from edgetune.core.update import Projected
from edgetune.federation.residency import pack_tensor

ROWS_AT_ONCE = 1 << 20
"""Elements of a low-rank product formed at a time: bounds its scratch memory."""
Named = Iterator[tuple[str, torch.Tensor]]


class Change(ABC):
    """A fine-tune as a function of one base weight after another."""

    @property
    def first(self) -> bool:
        """Whether it is a change of the base itself, beneath which no other ledger can lie."""
        return False

    @abstractmethod
    def touches(self, name: str) -> bool:
        """Say whether a parameter may change at all."""

    @abstractmethod
    def of(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the tuned values of a parameter, float32 in the model's own row order.

        Args:
            name: the parameter, one that it `touches`.
            weight: float32, the base's values; may be overwritten.
        """

    def own(self) -> Named | None:
        """Yield the trained tensors where they are not the model's parameters themselves, for their digest."""
        return None


@dataclass(frozen=True, slots=True)
class Summed(Change):
    """Directions added to weights.

        w' = w + c sum_k a_k z_k,   w rounded to a grid first where the run had it so

    Args:
        space: the directions, scaled by layer where the run scaled them.
        update: a_k, in the order in which they are added; none is zero.
        only: the parameters that move; None for all.
        grid: what the base was rounded to.
    Cost: that of a replay of the tensor.
    """

    space: Adds
    update: Projected
    only: frozenset[str] | None = None
    grid: BlockGrid | None = None

    @property
    def first(self) -> bool:
        """Whether the base is rounded first."""
        return self.grid is not None

    def touches(self, name: str) -> bool:
        """Say whether a parameter moves."""
        return self.only is None or name in self.only

    def of(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the sum, formed as the run formed it."""
        if self.grid is not None and whole_blocks(weight.shape):
            weight = pack_tensor(weight, self.grid, name).dequantise()
        if len(self.update.keys):
            self.space.replay(weight, weight.contiguous(), self.update, name)
        return weight


@dataclass(frozen=True, slots=True)
class Replaced(Change):
    """Weights that gradients moved: the ledger holds their values.

        w' = the ledger's tensor

    Args:
        tensors: by parameter name.
    """

    tensors: Mapping[str, torch.Tensor]

    @property
    def first(self) -> bool:
        """Yes: what stood there before is lost."""
        return True

    def touches(self, name: str) -> bool:
        """Say whether the ledger holds a parameter."""
        return name in self.tensors

    def of(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the ledger's values."""
        return self.tensors[name].float()

    def own(self) -> Named:
        """Yield the ledger's tensors."""
        return iter(self.tensors.items())


@dataclass(frozen=True, slots=True)
class LowRank(Change):
    """Factors folded into weights.

        w' = w + s (R + B A),   R a matrix that lies beneath, 0 in most runs

    Every product is exact in float64 and the sum over the rank has one order, so that every machine folds alike; a
    library's matrix product would not. It differs from peft's merge by float32's rounding.

    Args:
        factors: layer to B [outputs, r] and A [r, inputs], float32; factors that lie beneath the trained ones stand
            beside them.
        scale: s.
        residuals: layer to R, float32 [outputs, inputs].
        transposed: layers that store [inputs, outputs].
        trained: the trained tensors by the names that the run gave them.
    Cost: r multiplications a weight; float64 scratch for some rows.
    """

    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float
    residuals: Mapping[str, torch.Tensor] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    trained: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def touches(self, name: str) -> bool:
        """Say whether a parameter is the matrix of an adapted layer."""
        layer, _, kind = name.rpartition(".")
        return kind == "weight" and layer in self.factors

    def of(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return the matrix with the factors folded in."""
        layer = name.rpartition(".")[0]
        left, right = (factor.double() for factor in self.factors[layer])
        rows = weight.T if layer in self.transposed else weight
        step = max(1, ROWS_AT_ONCE // max(1, rows.shape[1]))
        for first in range(0, len(rows), step):
            some = slice(first, first + step)
            change = torch.zeros(left[some].shape[0], right.shape[1], dtype=torch.float64)
            for rank in range(right.shape[0]):
                change.addcmul_(left[some, rank : rank + 1], right[rank : rank + 1])
            if layer in self.residuals:
                change += self.residuals[layer][some].double()
            rows[some] += (change * self.scale).float()
        return weight

    def own(self) -> Named:
        """Yield the trained factors."""
        return iter(self.trained.items())
