"""A better mask for the same number of weights: one leaves, one enters, whichever pair lowers the error most."""

from __future__ import annotations

import torch

from edgetune.compress.grid import grouped

LEAVING = 8
"""Weights of a row, or of a group if that is less, whose leaving is looked at: those that it costs least. Looking at
all of a row's 256 takes 3 to 5 times as long, and after 32 swaps the error is the same to a thousandth."""
AT_ONCE = 1 << 23
"""Pairs looked at together, in floats: rows are taken in chunks so that memory does not depend on their number."""
WORTHWHILE = 1e-6
"""A swap must lower a row's error by this share of it: below, float32 cannot tell."""


def swap(
    target: torch.Tensor,
    hessian: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor,
    times: int,
    group: int | None = None,
    leaving: int = LEAVING,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Exchange weights of a mask, each time the best pair found in the row, until none helps.

        f(W) = (W - T) H (W - T)^T,   G = (W - T) H
        u leaves:   + W_u^2 H_uu - 2 W_u G_u
        p enters at its best value  v = -(G_p - W_u H_up) / H_pp:   - (G_p - W_u H_up)^2 / H_pp

    Both terms are exact, so that every swap lowers f by what was counted. All other weights stay. (The paper lets p
    enter at its dense value; there the masks are of weights that nothing has moved.)

    Args:
        target: float32 [rows, d], T.
        hessian: float32 [d, d], positive definite.
        weights: float32 [rows, d], 0 where not kept.
        kept: bool [rows, d], any mask.
        times: swaps in every row, at most.
        group: neighbouring columns within which a swap must stay (m of n:m), a divisor of d; None for a whole row.
        leaving: weights of a group that may leave, those of least cost; all of them is the best of all pairs.

    Returns:
        (weights, kept) after the swaps; a row keeps as many weights as before, a group as well.
    Cost: rows d `leaving` comparisons a swap, and two rows of H; a row that nothing helps any more costs nothing.
    Source: SparseSwaps (arXiv 2512.10922), which tries all pairs.
    """
    rows, columns = weights.shape
    size = group or columns
    solved, mask = weights.clone(), kept.clone()
    within = hessian.reshape(columns // size, size, columns // size, size).diagonal(dim1=0, dim2=2)
    within = within.permute(2, 0, 1).contiguous()  # [groups, leaves, enters]
    leaving = min(leaving, size)
    chunk = max(1, AT_ONCE // (columns * leaving))
    for first in range(0, rows, chunk):
        part = slice(first, first + chunk)
        _swap_rows(target[part], hessian, within, solved[part], mask[part], times, leaving)
    return solved, mask


def _swap_rows(
    target: torch.Tensor,
    hessian: torch.Tensor,
    within: torch.Tensor,
    weights: torch.Tensor,
    kept: torch.Tensor,
    times: int,
    leaving: int,
) -> None:
    """Swap in place, in rows that still gain."""
    error = weights - target
    gradient = error @ hessian
    left = (error * gradient).sum(1)
    active = torch.arange(len(weights), device=weights.device)
    for _ in range(times):
        w, g, mask = weights[active], gradient[active], kept[active]
        change, leaves, enters = best_pairs(w, g, mask, hessian.diagonal(), within, leaving)
        better = change < -WORTHWHILE * left[active]
        active, leaves, enters = active[better], leaves[better], enters[better]
        if not len(active):
            return
        out = weights[active, leaves]
        value = (out * hessian[leaves, enters] - gradient[active, enters]) / hessian[enters, enters]
        gradient[active] += value[:, None] * hessian[enters] - out[:, None] * hessian[leaves]
        weights[active, leaves], weights[active, enters] = 0.0, value
        kept[active, leaves], kept[active, enters] = False, True
        left[active] += change[better]


def best_pairs(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    kept: torch.Tensor,
    diagonal: torch.Tensor,
    within: torch.Tensor,
    leaving: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the exchange of every row that changes f least upwards or most downwards.

    Args:
        weights: float32 [rows, d], W.
        gradient: float32 [rows, d], G.
        kept: bool [rows, d].
        diagonal: float32 [d], diag H.
        within: float32 [d / size, size, size], H inside each group.
        leaving: weights of a group that may leave, at most `size`.

    Returns:
        (change of f, column that leaves, column that enters), each [rows]; change is infinite where a row has no pair.
    """
    groups, size = within.shape[:2]
    w, g, mask = (grouped(one, size) for one in (weights, gradient, kept))
    cost = torch.where(mask, w * (w * diagonal.view(groups, size) - 2 * g), torch.inf)
    cost, leaves = cost.topk(leaving, dim=2, largest=False)  # [rows, groups, leaving]
    coupling = within[torch.arange(groups, device=within.device)[:, None], leaves]
    wanted = g.unsqueeze(2) - w.gather(2, leaves).unsqueeze(3) * coupling
    free = torch.where(mask, 0.0, diagonal.rsqrt().view(groups, size)).unsqueeze(2)
    gain, enters = wanted.mul_(free).square_().max(dim=3)
    change = torch.where(mask.all(2, keepdim=True), torch.inf, cost - gain).flatten(1)
    least, place = change.min(dim=1)
    first = place // leaving * size
    left, entered = (first + one.flatten(1).gather(1, place[:, None])[:, 0] for one in (leaves, enters))
    return least, left, entered
