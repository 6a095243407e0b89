"""Which tokens a batch was trained to say, read from slopes along a pool of rank one."""

from __future__ import annotations

import torch
from torch.nn import functional

STEPS = 512
"""Tokens that are taken out of what was sent, at most; one may be taken several times."""


def atoms(
    head: torch.Tensor, row_signs: torch.Tensor, column_signs: torch.Tensor, width: int
) -> torch.Tensor:
    """Return what the likeliest gradient of each row of a head looks like once it is folded.

        a_v = D_v fold(E w_v) / |fold(E w_v)|

    The gradient of a token that is said is `-(1 - p) h`, and the hidden state h that it is said from is like its own
    row w of the head, which everybody has.

    Args:
        head: float [tokens, hidden], of the base.
        row_signs, column_signs: D [tokens] and E [hidden] of the head's name.
        width: Q, columns of a tile.

    Returns:
        Float32 [tokens, Q], rows of length 1.
    """
    signed = head.float() * column_signs
    wide = functional.pad(signed, (0, -signed.shape[1] % width))
    return row_signs.unsqueeze(1) * functional.normalize(wide.view(len(head), -1, width).sum(1), dim=1)


def pursue(core: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return how much of each token's row there is in what was sent, by matching pursuit.

        v = argmax <r[v mod P], a_v>;   s_v += that;   r[v mod P] -= that a_v;   until nothing is above 0

    Args:
        core: float [P, Q], the update on a tile: the transform of the coefficients.
        rows: float32 [tokens, Q], from `atoms`.

    Returns:
        Float32 [tokens]; those that were never taken out have what is left along them, less than all that were.
    Cost: `STEPS` products of the rows of one tile.
    """
    left, total = core.float().clone(), torch.zeros(len(rows))
    place = torch.arange(len(rows)) % len(core)
    along = (rows * left[place]).sum(1)
    for _ in range(STEPS):
        best = int(along.argmax())
        amount, row = float(along[best]), int(place[best])
        if amount <= 0:
            break
        total[best] += amount
        left[row] -= amount * rows[best]
        along[row :: len(core)] = rows[row :: len(core)] @ left[row]
    return torch.where(total > 0, total, along.clamp(max=0.0))
