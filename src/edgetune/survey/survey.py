"""What every way to choose layers before a round can do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from edgetune.core.batch import Batch, Objective
from edgetune.core.part import CHOSEN_LAYERS, GRADIENTS, NOISE, RESIDUALS, STALE, Part
from edgetune.core.pieces import Layers
from edgetune.core.tuned import Tuned

Scores = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Masks = dict[int, Mask]
"""By device, which of the layers it trains."""
Memory = dict[str, torch.Tensor]
"""What a server remembers from round to round, by name."""


class Survey(Part):
    """An exchange before a round: devices answer with a few numbers, the server with layers; frozen values.

    Numbers of a layer say less of a device's records than its gradient, but they say something, and no noise hides it.
    """

    __slots__ = ()
    least_batch: ClassVar[int] = 1
    """Records that a batch must have to be measured."""

    @property
    def gives(self) -> frozenset[str]:
        """Replies that hold the layers that their device was to train."""
        return frozenset({CHOSEN_LAYERS})

    @property
    def needs(self) -> frozenset[str]:
        """Gradients, of which a device takes those of some layers."""
        return frozenset({GRADIENTS})

    @property
    def refuses(self) -> frozenset[str]:
        """Noise, which would not cover these numbers; a base that a server changes beneath the layers; late replies."""
        return frozenset({NOISE, RESIDUALS, STALE})

    @abstractmethod
    def due(self, round: int, memory: Memory) -> bool:
        """Say whether devices are asked before a round (from 1); else the memory says what they train."""

    @abstractmethod
    def size(self, layers: int) -> int:
        """Return how many numbers a device answers with."""

    @abstractmethod
    def measure(self, tuned: Tuned, layers: Layers, batches: Iterator[Batch], objective: Objective) -> Scores:
        """Return a device's numbers, float32 [size]; the weights stay as they are.

        Args:
            tuned: the model as the round starts from it.
            layers: by depth.
            batches: of the device's records; as many are taken as are needed.
            objective: what it minimises.
        """

    def start(self, layers: int) -> Memory:
        """Return the memory before the first round; names, types and shapes stay."""
        return {}

    @abstractmethod
    def choose(
        self,
        devices: Sequence[int],
        scores: Mapping[int, Scores],
        examples: Mapping[int, int],
        layers: int,
        memory: Memory,
    ) -> Masks:
        """Return the layers of each device; one that is absent takes no part in the round.

        Args:
            devices: that were asked, ascending.
            scores: what came back, all finite; nothing where none was asked.
            examples: by device, how many it holds.
            layers: how many there are.
            memory: changed in place.
        """
