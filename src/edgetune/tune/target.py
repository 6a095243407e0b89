"""What every choice of weights to tune can do, and those that put tensors on a model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError
from edgetune.core.part import TENSORS, Part
from edgetune.core.quantised import BaseTensor
from edgetune.core.tuned import Space
from edgetune.core.update import Dense
from edgetune.tune.dense import DenseTuned
from edgetune.tune.placed import Placed
from edgetune.tune.projected import ProjectedTuned
from edgetune.tune.projected_adapter import ProjectedAdapter

if TYPE_CHECKING:
    from typing_extensions import Self


class Target(Part):
    """What is tuned; implementations are frozen values."""

    __slots__ = ()

    @property
    def merges(self) -> bool:
        """Whether what is learnt can become a change of the model's own weights, which a model file holds."""
        return True

    @property
    def factor_scale(self) -> float:
        """What multiplies `B A` where the tuned tensors are low-rank factors; 0 elsewhere."""
        return 0.0

    @property
    def ships(self) -> bool:
        """Whether a run's state before its first step is computed at the server and sent, instead of the seed's."""
        return False

    @property
    def sampled(self) -> bool:
        """Whether that state is computed on a sample of the server's own."""
        return False

    def start(self, tuned: DenseTuned, seed: int, sample: Sequence[Batch]) -> Dense:
        """Return the state before the first step of a target that `ships` one.

        Args:
            tuned: the handle, as `open` returns it.
            seed: of what is drawn at random.
            sample: the server's own records, by batches; may be empty unless `sampled`.
        """
        return tuned.state()

    @property
    def streams(self) -> bool:
        """Whether `stream` returns a handle."""
        return False

    def stream(self, model: PreTrainedModel, space: Space, base: Mapping[str, BaseTensor]) -> ProjectedTuned:
        """Return the handle of a model over a base that is memory-mapped or packed, and never formed as a whole.

        Args:
            model: the base, with its matrices or without; it becomes the tuned model.
            space: a pool that one transform sums.
            base: the values of every parameter, as stored.

        Raises:
            ConfigError: if this target cannot be streamed, or not along these directions.
            ModelError: as the handles.
        """
        raise ConfigError(f"{self.title} cannot be streamed", hint="use residency fused")

    @abstractmethod
    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> DenseTuned | ProjectedTuned:
        """Return the tuned handle of a model.

        Args:
            model: the base, which becomes the tuned model.
            space: the directions; None for gradients.
            seed: of initial values.
            base: the stored weights; where they are needed and not given, a copy is kept.
        """


class Placing(Target):
    """A target that puts tensors on a model; they may be tuned along directions or by gradients."""

    __slots__ = ()

    @property
    def gives(self) -> frozenset[str]:
        """Few tensors, which gradients reach."""
        return frozenset({TENSORS})

    @abstractmethod
    def place(
        self, model: PreTrainedModel, seed: int, base: Mapping[str, torch.Tensor] | None = None
    ) -> Placed:
        """Put the tensors on the model; `seed` and `base` as in `open`."""

    @classmethod
    @abstractmethod
    def described(cls, said: Mapping[str, Any]) -> Self:
        """Return the target that a ledger's configuration describes (`Placed.configuration`).

        Raises:
            KeyError: if it lacks a setting.
        """

    def open(
        self,
        model: PreTrainedModel,
        space: Space | None,
        seed: int,
        base: Mapping[str, torch.Tensor] | None = None,
    ) -> DenseTuned | ProjectedTuned:
        """Return the tuned handle, projected if there are directions."""
        placed = self.place(model, seed, base)
        return DenseTuned(placed) if space is None else ProjectedAdapter(placed, space)
