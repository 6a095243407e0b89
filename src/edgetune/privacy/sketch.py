"""Uploads of millions of numbers by few, so that many can be held and compared."""

from __future__ import annotations

import numpy as np
import torch

from edgetune.core.keys import stream

WIDTH = 1 << 16
"""Numbers of a sketch; products of two are off by about 1 / sqrt of it of the product of their lengths."""


def sketch(values: torch.Tensor, width: int = WIDTH) -> torch.Tensor:
    """Return a vector as it is if it is short, else folded under random signs that are the same for all.

        s_j = sum_i r_i v_i over i mod width = j,   E <s, s'> = <v, v'>

    Equal vectors have equal sketches.

    Args:
        values: float [numbers].
        width: of the sketch.

    Returns:
        Float32 [at most width].
    Cost: a pass over the values, and a random byte for each.
    Source: Charikar, Chen and Farach-Colton 2002 (count sketch), with places in turn.
    """
    flat = values.detach().float().cpu()
    if len(flat) <= width:
        return flat
    draw, total = stream(0, "sketch", width), torch.zeros(width)
    for start in range(0, len(flat), width):
        part = flat[start : start + width]
        total[: len(part)] += part * torch.from_numpy(2 * draw.integers(0, 2, len(part), np.int8) - 1)
    return total
