"""The seam between a handle and directions that move activations: what they add to the outputs of layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from edgetune.core.perturbation import Perturbation
from edgetune.core.update import Projected


class Moves(ABC):
    """What a handle's weights differ by from those that its modules hold, at every point of a forward pass.

    Points come one after the other: x of a layer is [points, rows, inputs], whatever a point's rows are.
    """

    sums: ClassVar[bool]
    """Whether they hold what was learnt, beside a perturbation; else steps are in the weights."""

    def become(self, state: Projected) -> None:
        """Take a sum of directions, where they hold it.

        Raises:
            NotImplementedError: if they do not.
        """
        raise NotImplementedError

    @abstractmethod
    def linear(
        self, name: str, shape: tuple[int, int], x: torch.Tensor, y: torch.Tensor, now: Perturbation
    ) -> None:
        """Add `x (W' - W)^T` to a layer's output.

        Args:
            name: of W.
            shape: of W, [m, n].
            x: float32 [points, rows, n].
            y: float32 [points, rows, m], contiguous; written.
            now: the points.
        Cost: one pass over x and one over y.
        """

    @abstractmethod
    def turned(
        self, name: str, shape: tuple[int, int], x: torch.Tensor, y: torch.Tensor, now: Perturbation
    ) -> None:
        """Add `x (W' - W)` to the output of a layer whose matrix is stored as [inputs, outputs]."""

    @abstractmethod
    def rows(
        self, name: str, shape: tuple[int, int], ids: torch.Tensor, y: torch.Tensor, now: Perturbation
    ) -> None:
        """Add rows of `W' - W` to what an embedding looked up.

        Args:
            name: of W.
            shape: of W, [m, n].
            ids: int64 [points, rows], each in [0, m).
            y: float32 [points, rows, n], contiguous; written.
            now: the points.
        """

    @abstractmethod
    def vectors(self, name: str, count: int, now: Perturbation, device: torch.device) -> torch.Tensor:
        """Return what is added to a vector at every point, float32 [points, count]."""
