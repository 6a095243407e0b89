"""Tensors that are never whole in memory: formed, or read, a part at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch


@dataclass(frozen=True, slots=True)
class InParts:
    """A tensor as the parts that make it up.

    Args:
        shape: of the whole.
        dtype: of its elements.
        parts: called for an iterator of tensors whose elements, in order, are those of the flattened whole; each part
            is good until the next one is asked for.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Callable[[], Iterator[torch.Tensor]]

    def numel(self) -> int:
        """Return the number of elements."""
        return prod(self.shape)

    def first(self, count: int) -> torch.Tensor:
        """Return a copy of the first elements, [count].

        Args:
            count: at most `numel()`.
        Cost: the parts that hold them, and the copy.
        """
        found, left = list[torch.Tensor](), count
        for part in self.parts():
            found.append(part.reshape(-1)[:left].clone())
            left -= len(found[-1])
            if not left:
                break
        return torch.cat(found) if len(found) != 1 else found[0]
