"""The depth of tuned tensors: what stands before the blocks, each block, what stands after them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from edgetune.core.pieces import Layer, Piece


def by_depth(model: nn.Module, names: Iterable[str]) -> tuple[Layer, ...]:
    """Return tensors by depth: embeddings, blocks in their order, norm and head; a group without a tensor is left out.

    A block's tensors are those with its number in their name (`model.layers.3.mlp...`, `transformer.h.3...`).

    Args:
        model: whose tensors they are; it says what is an embedding.
        names: of the tensors.
    """
    groups = dict[tuple[int, int], list[Piece]]()
    for name in names:
        number = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if number is not None:
            place = (1, number)
        else:
            embeds = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
            place = (0, 0) if embeds else (2, 0)
        groups.setdefault(place, []).append(Piece(name))
    return tuple(tuple(groups[place]) for place in sorted(groups))


def by_columns(name: str, width: int, count: int) -> tuple[Layer, ...]:
    """Return equal parts of one tensor's columns as layers, as a prefix has them: keys and values of layer after layer.

    Args:
        name: of the tensor.
        width: of its last dimension, a multiple of `count`.
        count: layers.
    """
    each = width // count
    return tuple((Piece(name, index * each, (index + 1) * each),) for index in range(count))
