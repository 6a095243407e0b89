"""Scales and codes of 32-weight blocks: a scale is rounded to fp16 before any code is chosen on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from edgetune.core.quantised import BlockGrid

SMALLEST_SCALE = 6e-8
"""Below this magnitude fp16 has nothing to offer (its least subnormal is 2^-24); the block becomes zeros."""


class ScaleFit(Protocol):
    """A way to choose the scale of a block of weights."""

    def __call__(self, weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid) -> torch.Tensor:
        """Return fp16-representable scales.

        Args:
            weights: float [..., 32], finite.
            importance: float, broadcastable to `weights`, not negative: cost of a squared error per weight.
            grid: where the codes live.

        Returns:
            float [...] in the dtype of `weights`; 0 for a block to store as zeros, infinite if fp16 cannot
            hold it.
        """


@dataclass(frozen=True, slots=True)
class AbsMax:
    """The scale that puts the weight of largest magnitude on the outermost code, as llama.cpp does.

        s = -x*/|low|,  x* = the weight of largest magnitude   (|x*| / high where the grid is symmetric)

    Enough at 8 bits: a search there lowers KL from 1.7e-6 to 1.5e-6, where 4 bits costs 3.9e-4
    (OPTQ on the 28 projections of markov-3.7M).
    """

    def __call__(self, weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid) -> torch.Tensor:
        """Return one scale per block; `importance` plays no part."""
        return representable(_extreme(weights, grid) / grid.low)


@dataclass(frozen=True, slots=True)
class SignedSearch:
    """The scale, among steps around the extreme weight, with the least weighted squared error.

        s = argmin_{s in S} sum_j h_j (s clamp(round(x_j / s)) - x_j)^2
        S = {-x* / d : d = |low| and `steps` values from |low| + below to |low| + above},  rounded to fp16

    x* is the weight of largest magnitude with its sign: a negative scale gives it the extra code that a two's
    complement grid has on its negative side. About half of the blocks choose one.

    Args:
        steps: number of scales tried, at least 2.
        below: end of the range where the extreme weight is clipped, in codes.
        above: end of the range where the outermost code stays unused, in codes.
    Cost: about 6 `steps` operations a weight.
    """

    steps: int = 41
    below: float = -1.5
    above: float = 1.0

    def __call__(self, weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid) -> torch.Tensor:
        """Return one scale per block; among equals the first tried."""
        extreme = _extreme(weights, grid)
        # The plain scale comes first, so a search never ends above it.
        best = representable(extreme / grid.low)
        least = _loss(weights, best, importance, grid)
        for step in range(self.steps):
            reach = -grid.low + self.below + (self.above - self.below) * step / (self.steps - 1)
            scale = representable(extreme / -reach)
            loss = _loss(weights, scale, importance, grid)
            # A scale beyond fp16 has loss NaN and gives way to any that is not.
            better = (loss < least) | (torch.isnan(least) & ~torch.isnan(loss))
            best, least = torch.where(better, scale, best), torch.where(better, loss, least)
        return best


def representable(scale: torch.Tensor) -> torch.Tensor:
    """Round scales to fp16 and back; 0 below 6e-8, infinite above 65504."""
    rounded = scale.to(torch.float16).to(scale.dtype)
    return torch.where(rounded.abs() < SMALLEST_SCALE, torch.zeros_like(rounded), rounded)


def nearest_codes(weights: torch.Tensor, scales: torch.Tensor, grid: BlockGrid) -> torch.Tensor:
    """Return the codes nearest to weights, integers in the dtype of `weights`.

        code = clamp(round(w / s), low, high),   0 where s = 0

    Args:
        weights: float [..., n].
        scales: float [...], one per n weights.
        grid: where the codes live.
    """
    wide = scales.unsqueeze(-1)
    ratio = weights / torch.where(wide == 0, torch.full_like(wide, torch.inf), wide)
    return ratio.round_().clamp_(grid.low, grid.high)


def _extreme(weights: torch.Tensor, grid: BlockGrid) -> torch.Tensor:
    position = weights.abs().argmax(dim=-1, keepdim=True)
    extreme = weights.gather(-1, position).squeeze(-1)
    return extreme if grid.low + grid.high else -extreme.abs()


def _loss(
    weights: torch.Tensor, scales: torch.Tensor, importance: torch.Tensor, grid: BlockGrid
) -> torch.Tensor:
    rounded = nearest_codes(weights, scales, grid).mul_(scales.unsqueeze(-1))
    return rounded.sub_(weights).square_().mul_(importance).sum(dim=-1)
