"""Layers of what is tuned: which tensors, or columns of one, belong to which depth; cut out of updates and put back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from edgetune.core.update import Dense


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor, or some columns of it.

    Args:
        name: of the tensor.
        start: first element of the last dimension.
        stop: the element after the last; 0 takes the tensor whole.
    """

    name: str
    start: int = 0
    stop: int = 0

    @property
    def label(self) -> str:
        """What the piece is called on the wire."""
        return f"{self.name}[{self.start}:{self.stop}]" if self.stop else self.name

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the view of the tensor."""
        return tensor[..., self.start : self.stop] if self.stop else tensor


Layer = tuple[Piece, ...]
Layers = Sequence[Layer]
"""By depth: what an input meets first comes first."""


def pieces(layers: Iterable[Layer]) -> list[Piece]:
    """Return the pieces of some layers."""
    return [piece for layer in layers for piece in layer]


def cut(update: Dense, layers: Iterable[Layer]) -> Dense:
    """Return the pieces of an update, by label; views where they can be."""
    return Dense({one.label: one.of(update.tensors[one.name]) for one in pieces(layers)})


def laid(update: Dense, layers: Iterable[Layer], like: Dense) -> Dense:
    """Return pieces as changes of whole tensors; beside them nothing changes.

    Args:
        update: by label.
        layers: all that there are; pieces of which the update says nothing are no change.
        like: the tensors that they are pieces of.
    """
    found = dict[str, torch.Tensor]()
    for one in pieces(layers):
        if one.label not in update.tensors:
            continue
        change = update.tensors[one.label]
        if not one.stop:
            found[one.name] = change
            continue
        if one.name not in found:
            found[one.name] = torch.zeros_like(like.tensors[one.name])
        one.of(found[one.name]).copy_(change)
    return Dense(found)


def put(values: Mapping[str, torch.Tensor], layers: Iterable[Layer], into: Dense) -> Dense:
    """Return an update with the values of pieces in place of its own; what no piece touches is shared, not copied."""
    found = dict(into.tensors)
    for one in pieces(layers):
        if not one.stop:
            found[one.name] = values[one.label]
            continue
        if found[one.name] is into.tensors[one.name]:
            found[one.name] = into.tensors[one.name].clone()
        one.of(found[one.name]).copy_(values[one.label])
    return Dense(found)
