"""Which code a weight gets, and how the scale of a group of weights is chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from edgetune.core.quantised import BlockGrid

UPPER = 112.0
"""Half of the largest scale of NVFP4: room for what a sweep adds to the weights."""
Step = tuple[torch.Tensor, torch.Tensor | None]
"""Scale and offset of every group, float [...]; no offset where the grid has none."""


class ScaleFit(Protocol):
    """A way to choose scale and offset of a group of weights, as real numbers; storing them comes after."""

    def __call__(self, weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid) -> Step:
        """Return scale and offset.

        Args:
            weights: float [..., n], finite.
            importance: float, broadcastable to `weights`, not negative: cost of a squared error per weight.
            grid: where the codes live.

        Returns:
            float [...] in the dtype of `weights`, with their signs as the grid stores them.
        """


@dataclass(frozen=True, slots=True)
class AbsMax:
    """The scale that puts the weight of largest magnitude on the outermost level, as llama.cpp does.

        s = x* / p*,  x* = the weight of largest magnitude,  p* = the level of largest magnitude   (|x*| / |p*| where
        both ends are alike);   with an offset  o = min x,  s = (max x - o) / high

    Enough at 8 bits: a search there lowers KL from 1.7e-6 to 1.5e-6, where 4 bits costs 3.9e-4
    (OPTQ on the 28 projections of markov-3.7M).
    """

    def __call__(self, weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid) -> Step:
        """Return scale and offset of every group; `importance` plays no part."""
        if grid.offset:
            least = weights.amin(-1)
            if grid.sign < 0:
                least = least.clamp(max=0)
            return (weights.amax(-1) - least).clamp(min=0) / grid.high, least
        points = grid.points(weights.device)
        outer = points[points.abs().argmax()]
        if not grid.signed or bool((points == -outer).any()):
            return weights.abs().amax(-1) / outer.abs(), None
        low, high = weights.amin(-1), weights.amax(-1)
        return torch.where(-low >= high, low, high) / outer, None


def nearest_codes(
    weights: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor | None, grid: BlockGrid
) -> torch.Tensor:
    """Return the codes nearest to weights, integers in the dtype of `weights`.

        code = argmin_c |s level(c) + o - w|,   the level nearest to 0 where s = 0

    Args:
        weights: float [..., n].
        scales: float [...], one per n weights.
        offsets: float [...], signed; None for none.
        grid: where the codes live.
    """
    wide = scales.unsqueeze(-1)
    ratio = weights if offsets is None else weights - offsets.unsqueeze(-1)
    ratio = ratio / torch.where(wide == 0, torch.full_like(wide, torch.inf), wide)
    if not grid.levels:
        return ratio.round_().clamp_(grid.low, grid.high)
    points = grid.points(weights.device)
    return torch.bucketize(ratio.contiguous(), (points[1:] + points[:-1]) / 2).to(weights.dtype)


def unit_of(weights: torch.Tensor, grid: BlockGrid) -> float:
    """Return the power of two by which a matrix is divided before it goes on a grid with one, else 1.

    The largest group's scale comes to lie in the upper half of what a group can store, the others below.

    Args:
        weights: float [rows, d].
        grid: where they go.
    """
    largest = float(weights.abs().amax()) if grid.has_unit and weights.numel() else 0.0
    if not 0 < largest < math.inf:
        return 1.0
    outer = float(grid.points().abs().max()) * UPPER
    return 2.0 ** math.ceil(math.log2(largest / outer))


def grouped(values: torch.Tensor, width: int) -> torch.Tensor:
    """Return the last dimension in pieces: [..., n width] as [..., n, width]."""
    return values.reshape(*values.shape[:-1], -1, width)


def loss_of(
    weights: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor | None,
    importance: torch.Tensor,
    grid: BlockGrid,
) -> torch.Tensor:
    """Return the weighted squared error of rounding on given steps, float [...]; NaN if a step is not finite."""
    rounded = grid.level(nearest_codes(weights, scales, offsets, grid)).mul_(scales.unsqueeze(-1))
    if offsets is not None:
        rounded += offsets.unsqueeze(-1)
    return rounded.sub_(weights).square_().mul_(importance).sum(dim=-1)
