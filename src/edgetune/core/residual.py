"""Residuals: what a server adds to the frozen base beneath low-rank factors, by names in a dense state.

    W = W_0 + s (R + B A),   R = D + sum_t B_t A_t

`STEM.residual` is D [outputs, inputs]; `STEM.residual_B.t` [outputs, k] and `STEM.residual_A.t` [k, inputs] are factors
that a round added; STEM names the adapted layer, as in the factors' own names, and s is the adapter's scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from edgetune.core.update import Dense

A, B = ".lora_A.", ".lora_B."
"""What the names of the two factors hold after the layer's."""
RESIDUAL = re.compile(r"(.+)\.residual(?:_([AB])\.(\d+))?")
Tensors = Mapping[str, torch.Tensor]
Factors = tuple[torch.Tensor, torch.Tensor]
"""B [outputs, k] and A [k, inputs], whose product is meant."""


def pairs(tensors: Tensors) -> dict[str, tuple[str, str]]:
    """Return the names of B and A by adapted layer, of those layers that have both."""
    found = {}
    for name in tensors:
        stem, mark, rest = name.partition(A)
        if mark and f"{stem}{B}{rest}" in tensors:
            found[stem] = (f"{stem}{B}{rest}", name)
    return found


def trained(update: Dense) -> Dense:
    """Return an update without its residuals: what devices move."""
    return Dense({name: one for name, one in update.tensors.items() if not RESIDUAL.fullmatch(name)})


def residuals(update: Dense) -> dict[str, torch.Tensor]:
    """Return the residuals of an update, by name."""
    return {name: one for name, one in update.tensors.items() if RESIDUAL.fullmatch(name)}


def named(state: Dense, factors: Mapping[str, Factors]) -> dict[str, torch.Tensor]:
    """Name factors that a round adds to a state's residuals.

    Args:
        state: what the round started from.
        factors: by adapted layer.
    """
    found = dict[str, torch.Tensor]()
    for stem, (left, right) in factors.items():
        count = sum(name.startswith(f"{stem}.residual_A.") for name in state.tensors)
        found |= {f"{stem}.residual_B.{count}": left, f"{stem}.residual_A.{count}": right}
    return found


def formed(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return R by adapted layer, float32 [outputs, inputs].

    Cost: sums in float64; k (outputs x inputs) multiplications for factors of rank k.
    """
    found = dict[str, torch.Tensor]()
    for stem, (dense, lefts, rights) in _grouped(tensors).items():
        parts = [dense.double()] if dense is not None else []
        if lefts:
            parts.append(torch.cat(lefts, 1).double() @ torch.cat(rights, 0).double())
        found[stem] = sum(parts).float()  # type: ignore[union-attr]
    return found


def side_by_side(tensors: Tensors) -> dict[str, Factors]:
    """Return the factors of the residuals by adapted layer, all rounds' beside each other; no matrices."""
    return {
        stem: (torch.cat(lefts, 1), torch.cat(rights, 0))
        for stem, (_, lefts, rights) in _grouped(tensors).items()
        if lefts
    }


def folded(update: Dense) -> Dense:
    """Return the same state in the smaller form: a layer's factors, or one matrix once they are no smaller than it.

    Cost: that of `formed` for the layers that have a matrix.
    """
    found = dict(update.tensors)
    for stem, (dense, lefts, rights) in _grouped(residuals(update)).items():
        size = sum(one.numel() for one in (*lefts, *rights))
        if not size or (dense is None and size < lefts[0].shape[0] * rights[0].shape[1]):
            continue
        own = {name: one for name, one in found.items() if name.startswith(f"{stem}.residual")}
        found = {name: one for name, one in found.items() if name not in own}
        found[f"{stem}.residual"] = formed(own)[stem]
    return Dense(found)


def misfit(tensors: Tensors, like: Tensors) -> str | None:
    """Return the first residual that is none of an adapter's, or None if all fit.

    Args:
        tensors: residuals, by name.
        like: the adapter's own factors.
    """
    layers = {
        stem: (like[left].shape[0], like[right].shape[1]) for stem, (left, right) in pairs(like).items()
    }
    for name, one in tensors.items():
        stem, side, count = RESIDUAL.fullmatch(name).groups()  # type: ignore[union-attr]
        if stem not in layers or one.dtype != torch.float32 or one.ndim != 2:
            return name
        outputs, inputs = layers[stem]
        other = tensors.get(f"{stem}.residual_{'A' if side == 'B' else 'B'}.{count}") if side else one
        if other is None or other.ndim != 2:
            return name
        wanted = {"B": (outputs, other.shape[0]), "A": (other.shape[1], inputs), None: (outputs, inputs)}
        if tuple(one.shape) != wanted[side]:
            return name
    return None


def _grouped(
    tensors: Tensors,
) -> dict[str, tuple[torch.Tensor | None, list[torch.Tensor], list[torch.Tensor]]]:
    """Return D, all B_t and all A_t by layer, in the order of t."""
    found = dict[str, tuple[torch.Tensor | None, list[torch.Tensor], list[torch.Tensor]]]()
    said = [match for match in map(RESIDUAL.fullmatch, tensors) if match]
    for match in sorted(said, key=lambda one: int(one[3] or 0)):
        stem, side, tensor = match[1], match[2], tensors[match[0]]
        _, lefts, rights = found.setdefault(stem, (None, [], []))
        if side is None:
            found[stem] = (tensor, lefts, rights)
        else:
            (lefts if side == "B" else rights).append(tensor)
    return found
