"""The scale of a group with the least weighted error there is, over all scales and not a list of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from edgetune.compress.grid import AbsMax, Step, nearest_codes
from edgetune.core.quantised import BlockGrid

AT_ONCE = 1 << 18
"""Breakpoints that are sorted together: few enough for a cache, 40 bytes of memory each."""
FINEST = 48
"""Levels up to which a search pays; with more the plain scale is as good (see `AbsMax`)."""


@dataclass(frozen=True, slots=True)
class LeastError:
    """Scale, and offset where the grid has one, with the least weighted squared error.

        argmin_{s, o} sum_j h_j (s level(c_j) + o - x_j)^2,   c_j the nearest code

    Without an offset the optimum is exact (`best_scale`). With one, `starts` widths are tried and each is refitted in
    closed form on its codes, twice.

    Args:
        starts: widths of the range tried for grids with an offset, at least 1.
        below: first width, in steps less than the range of the weights.
        above: last width, in steps more than it.
    Cost: without offset a sort of the breakpoints, 8 a weight at 4 bits and either sign; else about 20 `starts`
        operations a weight.
    Source: llama.cpp's `make_qkx3_quants` for the offset; pull request 12557 there for the exact scale.
    """

    starts: int = 11
    below: float = 1.0
    above: float = 1.0

    def __call__(self, weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid) -> Step:
        """Return scale and offset of every group."""
        if grid.offset:
            return self._with_offset(weights, importance, grid)
        points = grid.points(weights.device)
        if len(points) > FINEST:
            return AbsMax()(weights, importance, grid)
        scale = best_scale(weights, importance.expand_as(weights), points, signed=grid.signed)
        # A single weight has many scales without error, and the plain one can be stored where the first cannot.
        plain, _ = AbsMax()(weights, importance, grid)
        return torch.where(scale.abs() > grid.largest_scale, plain, scale), None

    def _with_offset(self, weights: torch.Tensor, importance: torch.Tensor, grid: BlockGrid) -> Step:
        low, high = weights.amin(-1), weights.amax(-1)
        if grid.sign < 0:
            low = low.clamp(max=0)
        scale, offset = (high - low).clamp(min=1e-30) / grid.high, low
        least = torch.full_like(scale, torch.inf)
        for step in range(self.starts):
            reach = grid.high - self.below + (self.below + self.above) * step / max(self.starts - 1, 1)
            s, o = (high - low).clamp(min=1e-30) / reach, low
            for _ in range(2):
                s, o, loss = _refit(weights, nearest_codes(weights, s, o, grid), importance, grid.sign < 0)
                better = loss < least
                scale, offset = torch.where(better, s, scale), torch.where(better, o, offset)
                least = torch.where(better, loss, least)
        return scale, offset


def _refit(
    weights: torch.Tensor, codes: torch.Tensor, importance: torch.Tensor, negative: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the least-squares scale and offset of given codes, and their error less a constant."""
    h = importance.expand_as(weights)
    hc = h * codes
    n, c, cc = h.sum(-1), hc.sum(-1), (hc * codes).sum(-1)
    x, xc = (h * weights).sum(-1), (hc * weights).sum(-1)
    determinant = n * cc - c * c
    sound = determinant > 1e-6 * n * cc
    safe = torch.where(sound, determinant, torch.ones_like(determinant))
    s = torch.where(sound, (n * xc - c * x) / safe, torch.zeros_like(safe))
    o = torch.where(sound, (cc * x - c * xc) / safe, x / n.clamp(min=1e-30))
    if negative:
        plain = torch.where(cc > 0, xc / cc.clamp(min=1e-30), torch.zeros_like(cc))
        s, o = torch.where(o > 0, plain, s), o.clamp(max=0)
    loss = s * s * cc + o * o * n + 2 * s * o * c - 2 * s * xc - 2 * o * x
    return s, o, loss


def best_scale(
    values: torch.Tensor, importance: torch.Tensor, points: torch.Tensor, *, signed: bool
) -> torch.Tensor:
    """Return the scale s with the least sum_j h_j (s p(x_j / s) - x_j)^2, p(.) the nearest point.

        As t = 1/s grows, x_j moves to its next point where t = midpoint / x_j. Between two such breakpoints all points
        are fixed, and with A = sum h x p, B = sum h p^2 the best scale there is A / B, its gain A^2 / B.

    Args:
        values: float [..., n].
        importance: float [..., n], not negative.
        points: float [m], ascending.
        signed: whether s may be negative; tried if the points are not symmetric.

    Returns:
        float [...]; 0 where all values are.
    Cost: a sort of n m / 2 breakpoints a group, for either sign.
    Source: cumulative search, llama.cpp pull request 12557.
    """
    flat, weight = values.reshape(-1, values.shape[-1]), importance.reshape(-1, values.shape[-1])
    both = signed and not torch.equal(points, -points.flip(0))
    rows = max(1, AT_ONCE // (flat.shape[1] * len(points)))
    found = []
    for x, h in zip(torch.split(flat, rows), torch.split(weight, rows), strict=True):
        scale, gain = _one_sign(x, h, points)
        if both:
            other, more = _one_sign(-x, h, points)
            scale = torch.where(more > gain, -other, scale)
        found.append(scale)
    return torch.cat(found).reshape(values.shape[:-1])


def _one_sign(x: torch.Tensor, h: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best positive scale and its gain, float [rows]."""
    middles = (points[1:] + points[:-1]) / 2
    first = int((middles < 0).sum())
    start = points[first]
    up = _walk(middles[first:], points[first:])
    down = _walk(-middles[:first].flip(0), points[: first + 1].flip(0))
    most = max(len(up[0]), len(down[0]))
    both = torch.stack([torch.cat(_padded(walk, most)) for walk in (up, down)])
    # One lookup for all three: where a weight moves on, what its point gains, what its point's square gains.
    each = both.index_select(0, (x <= 0).flatten().int()).view(*x.shape, 3 * most)
    hx = h * x
    order = _order((each[..., :most] / x.abs().clamp(min=1e-38).unsqueeze(-1)).flatten(1))
    gained = (each[..., most : 2 * most] * hx.unsqueeze(-1)).flatten(1).gather(1, order)
    squared = (each[..., 2 * most :] * h.unsqueeze(-1)).flatten(1).gather(1, order)
    gained[:, 0] += hx.sum(1) * start
    squared[:, 0] += h.sum(1) * start.square()
    a, b = gained.cumsum(1), squared.cumsum(1)
    gain = torch.clamp(a, min=0, out=gained).square_().div_(b.clamp_(min=1e-38))
    best, place = gain.max(1, keepdim=True)
    scale = torch.where(best > 0, a.gather(1, place) / b.gather(1, place), 0.0)
    return scale.squeeze(1), best.squeeze(1)


def _order(values: torch.Tensor) -> torch.Tensor:
    """Return what sorts each row of values above 0, int64 [rows, n]; those equal to some 14 bits in any order.

    On a CPU the index takes the place of the last bits and numpy sorts whole words, which is 10 times as fast.
    """
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.argsort(dim=1)
    width = (values.shape[1] - 1).bit_length()
    words = values.contiguous().numpy().view(np.uint32)
    keyed = (words >> width << width) | np.arange(values.shape[1], dtype=np.uint32)
    keyed.sort(axis=1)
    return torch.from_numpy((keyed & ((1 << width) - 1)).astype(np.int64))


def _walk(middles: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where a value leaves each point, and what its point and the point's square gain by it."""
    return middles, points[1:] - points[:-1], points[1:].square() - points[:-1].square()


def _padded(walk: tuple[torch.Tensor, ...], most: int) -> tuple[torch.Tensor, ...]:
    """Fill up with steps that are never taken and change nothing."""
    missing = most - len(walk[0])
    fills = (torch.inf, 0.0, 0.0)
    return tuple(
        torch.nn.functional.pad(part, (0, missing), value=fill)
        for part, fill in zip(walk, fills, strict=True)
    )
