"""How far directions point along a reference, both formed tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from edgetune.core.tuned import Adds
from edgetune.core.update import Projected


def cosines(
    space: Adds, weights: Iterable[tuple[str, torch.Tensor]], keys: Sequence[int], reference: Projected
) -> npt.NDArray[np.float64]:
    """Return the cosine of whole directions to a sum of others, over all tensors together.

        cos_i = sum_t <z_it, g_t> / (|z_i| |g|),   g = sum_j c_j z_j

    Args:
        space: the directions.
        weights: tensors by name, of which shapes and devices matter.
        keys: the directions that are compared.
        reference: c and its directions.

    Returns:
        float64 [keys]; 0 where one of the two is nothing.
    Cost: a draw of every direction, and two float32 tensors of the largest shape.
    """
    products, squares, length = np.zeros(len(keys)), np.zeros(len(keys)), 0.0
    for name, weight in weights:
        nothing = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        goal, drawn = torch.empty_like(nothing), torch.empty_like(nothing)
        space.replay(goal, nothing, reference, name)
        wide = goal.double().flatten()
        length += float(wide.square().sum())
        for index, key in enumerate(keys):
            space.axpy(drawn, nothing, 1.0, name, key)
            one = drawn.double().flatten()
            products[index] += float(one @ wide)
            squares[index] += float(one @ one)
    scale = np.sqrt(squares * length)
    found: npt.NDArray[np.float64] = np.divide(products, scale, out=np.zeros_like(scale), where=scale > 0)
    return found
