"""How much of an intended change of the weights their type lets through: the realised ratio."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from edgetune.core.in_parts import InParts
from edgetune.core.tuned import Adds, Space
from edgetune.core.update import Projected

ELEMENTS = 1 << 18
"""Weights in a sample, about; a ratio of 4 % then has a standard error below 0.01."""
LEAST = 256
"""Weights taken of a tensor, at least."""


def realised_ratio(change: torch.Tensor, intended: torch.Tensor) -> float:
    """Project what happened to the weights on what was meant to happen.

        r = <change, intended> / <intended, intended>

    1 is a faithful step, 0 is none; above 1, weights jumped to a neighbour further away than asked for.

    Args:
        change: [...], weights after minus weights before; the difference must be exact (float32 or wider).
        intended: like `change`, in the same units.

    Returns:
        The ratio; 1 if nothing was intended, because then nothing was lost.
    Cost: one pass, in float64.
    Source: the in-place updates of Malladi et al. 2023, arXiv:2305.17333, whose small steps half precision swallows.
    """
    wanted = intended.double().reshape(-1)
    norm = float(wanted @ wanted)
    return float(change.double().reshape(-1) @ wanted) / norm if norm else 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """The first elements of one tensor, standing for all of it.

    Args:
        name: the parameter.
        values: [n], a copy in the stored type.
        share: elements of the tensor for each element here, at least 1.
    """

    name: str
    values: torch.Tensor
    share: float


def sample_weights(
    weights: Iterable[tuple[str, torch.Tensor | InParts]], elements: int = ELEMENTS
) -> list[Part]:
    """Copy the same share of every tensor, from its first element on.

    Args:
        weights: contiguous tensors by name, or in parts; those that are not floating-point are left out.
        elements: about how many to copy in all; every tensor gives at least LEAST (or all it has).
    Cost: a copy of the sample.
    """
    tensors = [(name, weight) for name, weight in weights if weight.dtype.is_floating_point]
    total = max(1, sum(weight.numel() for _, weight in tensors))
    parts = []
    for name, weight in tensors:
        count = min(weight.numel(), max(LEAST, -(-weight.numel() * elements // total)))
        if count:
            parts.append(Part(name, _first(weight, count), weight.numel() / count))
    return parts


def _first(weight: torch.Tensor | InParts, count: int) -> torch.Tensor:
    return weight.first(count) if isinstance(weight, InParts) else weight.detach().reshape(-1)[:count].clone()


def realised_perturbation(space: Space, sample: list[Part], eps: float, seed: int) -> float:
    """Return how much of a two-point perturbation the forward passes see.

        r = realised_ratio(round(w + eps z) - round(w - eps z), 2 eps z)

    Args:
        space: the directions, not a kept one (only parts of tensors are drawn).
        sample: from `sample_weights`.
        eps: perturbation radius, > 0.
        seed: the direction.
    Cost: three draws of the sample.
    """
    change, intended = [], []
    for part in sample:
        above, below = torch.empty_like(part.values), torch.empty_like(part.values)
        space.axpy(above, part.values, eps, part.name, seed)
        space.axpy(below, part.values, -eps, part.name, seed)
        change.append((above.double() - below.double()) * part.share**0.5)
        intended.append(_drawn(space, part, Projected.of(seed, 2 * eps)) * part.share**0.5)
    return realised_ratio(torch.cat(change), torch.cat(intended))


def realised_update(before: list[Part], after: list[Part], intended: list[torch.Tensor]) -> float:
    """Return how much of an update, one step or all of an interval, has reached the stored weights.

        r = realised_ratio(w_after - w_before, sum_k a_k z_k)

    Args:
        before: sample of the weights to which the update was applied.
        after: sample of the same tensors afterwards.
        intended: the update's elements, from `Intended`.
    """
    change = [
        (new.values.double() - old.values.double()) * old.share**0.5
        for old, new in zip(before, after, strict=True)
    ]
    wanted = [one.double() * old.share**0.5 for old, one in zip(before, intended, strict=True)]
    return realised_ratio(torch.cat(change), torch.cat(wanted))


class Intended:
    """What an update means for a sample of the weights, free of their rounding.

        sum_k a_k z_k   in float32

    An update of fresh directions that goes on from the last one costs what came since.

    Args:
        space: the directions, not a kept one.
        sample: names and sizes of the tensors' parts.
    Cost: a float32 copy of the sample.
    """

    def __init__(self, space: Adds, sample: list[Part]) -> None:
        self._space, self._sample = space, sample
        self._update = Projected.none()
        self._sums = [
            torch.zeros(part.values.shape, dtype=torch.float32, device=part.values.device) for part in sample
        ]

    def form(self, update: Projected) -> list[torch.Tensor]:
        """Return the update's elements of every part, float32 [n]; they are good until the next call."""
        known = len(self._update.keys) if not self._space.pooled and update.goes_on_from(self._update) else 0
        rest = update.after(known)
        for total, part in zip(self._sums, self._sample, strict=True):
            if not known:
                total.zero_()
            if len(rest.keys):
                self._space.replay(total, total, rest, part.name)
        self._update = update
        return self._sums


def _drawn(space: Space, part: Part, update: Projected) -> torch.Tensor:
    """Form the update's elements of one part, float64 [n]."""
    return Intended(space, [part]).form(update)[0].double()
