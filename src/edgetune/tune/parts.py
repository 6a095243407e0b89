"""Linear and embedding layers that read perturbed weights part by part, so that no large tensor exists twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from edgetune.core.blank import is_blank
from edgetune.core.tuned import Adds

PART = 1 << 22
"""Elements formed at a time: 16 MB in float32. Parts that fit a core's cache were measured slower: the matrix product
loses more by being cut than the scratch gains (docs/log.md)."""

GPU_PART = 1 << 24
"""The same on a GPU, where every part costs a launch: 64 MB in float32."""

Form = Callable[[torch.Tensor, int], None]
"""Called with (out, start): form the elements of a perturbed tensor from `start` on, as many as `out` holds."""


def perturbed_linear(
    x: torch.Tensor, like: torch.Tensor, form: Form, alignment: int, part: int = PART
) -> torch.Tensor:
    """Multiply by a perturbed matrix that never exists as a whole.

        y = x (W + c Z)^T, a group of rows of W at a time

    Args:
        x: float [..., inputs].
        like: float [outputs, inputs], only its shape, type and device count.
        form: forms a group of rows.
        alignment: multiples of elements at which a group may start.
        part: elements formed at a time, at least.

    Returns:
        Float [..., outputs].
    Cost: W is read once; scratch of a part, or of the smallest aligned group of rows.
    """
    outputs, inputs = like.shape
    step = alignment // math.gcd(alignment, inputs) if alignment else outputs
    rows = min(outputs, max(1, part // (step * inputs)) * step)
    scratch = like.new_empty(rows, inputs)
    if rows == outputs:
        form(scratch, 0)
        return functional.linear(x, scratch)
    y = x.new_empty(*x.shape[:-1], outputs)
    for first in range(0, outputs, rows):
        formed = scratch[: outputs - first]
        form(formed, first * inputs)
        y[..., first : first + len(formed)] = functional.linear(x, formed)
    return y


def perturbed_rows(ids: torch.Tensor, like: torch.Tensor, form: Form, alignment: int) -> torch.Tensor | None:
    """Look tokens up in a perturbed embedding, forming only the rows that are asked for.

    Args:
        ids: int64 [...].
        like: float [tokens, width], only its shape, type and device count.
        form: forms an aligned window around a row.
        alignment: multiples of elements at which a window may start.

    Returns:
        Float [..., width], or None if so many different tokens are asked for that the whole table is cheaper.
    Cost: at most two alignments and a row of scratch a different token.
    """
    width = like.shape[1]
    tokens, places = torch.unique(ids, return_inverse=True)
    if len(tokens) * (width + 2 * alignment) >= like.numel():
        return None
    rows = like.new_empty(len(tokens), width)
    scratch = like.new_empty(width + 2 * alignment)
    for place, token in enumerate(tokens.tolist()):
        start, end = token * width, (token + 1) * width
        first = start // alignment * alignment
        form(scratch[: end - first], first)
        rows[place] = scratch[start - first : end - first]
    return rows[places]


def gathered_rows(
    ids: torch.Tensor, like: torch.Tensor, form: Form, alignment: int, part: int = PART
) -> torch.Tensor:
    """Look tokens up in a perturbed embedding, forming all of it one group of rows after the other.

    For GPUs: forming millions of elements takes less time there than one call a token, and nothing waits for the ids.

    Args:
        ids: int64 [...].
        like: float [tokens, width], only its shape, type and device count.
        form: forms a group of rows.
        alignment: multiples of elements at which a group may start; 0 if tensors are formed whole.
        part: elements formed at a time, at least.

    Returns:
        Float [..., width].
    Cost: the table is read once; scratch of a part, or of the smallest aligned group of rows.
    """
    tokens, width = like.shape
    step = alignment // math.gcd(alignment, width) if alignment else tokens
    each = min(tokens, max(1, part // (step * width)) * step)
    scratch, found = like.new_empty(each, width), like.new_empty(*ids.shape, width)
    for first in range(0, tokens, each):
        formed = scratch[: tokens - first]
        form(formed, first * width)
        place = ids - first
        here = (place >= 0) & (place < len(formed))
        rows = formed[place.clamp(0, len(formed) - 1)]
        found = torch.where(here.unsqueeze(-1), rows, found)
    return found


def reads_in_parts(module: nn.Module) -> bool:
    """Say whether a layer is exactly torch's linear or embedding layer, with a contiguous weight."""
    plain = type(module) is nn.Linear or (type(module) is nn.Embedding and module.max_norm is None)
    weight = module._parameters.get("weight")
    if not plain or weight is None or not weight.numel():
        return False
    return weight.is_contiguous() or is_blank(weight)


def floats_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of floating type by name."""
    return {name: one for name, one in model.named_parameters() if one.is_floating_point()}


def direction_of(weights: Mapping[str, torch.Tensor], space: Adds, seed: int) -> dict[str, torch.Tensor]:
    """Return a direction of some weights by name, whole: as many numbers as they have."""
    found = {}
    for name, weight in weights.items():
        zero = torch.zeros_like(weight)
        space.axpy(zero, zero, 1.0, name, seed)
        found[name] = zero
    return found
