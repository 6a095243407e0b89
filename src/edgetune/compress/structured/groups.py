"""Coupled groups of a decoder block: which rows and columns go together, and cutting them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgetune.compress.blocks import Linear
from edgetune.compress.structured.families import family_of
from edgetune.core.errors import ModelError

OUTPUTS, INPUTS = 0, 1
"""Axes of a matrix [outputs, inputs]."""


@dataclass(frozen=True, slots=True)
class Member:
    """What groups own of one matrix.

    Args:
        path: name of the linear layer inside the block.
        axis: OUTPUTS (rows, and their biases) or INPUTS (columns).
        index: int64 [groups, n]; row g lists the rows or columns that belong to group g.
    """

    path: str
    axis: int
    index: torch.Tensor


@dataclass(frozen=True, slots=True)
class Groups:
    """Coupled groups of one kind in one block: taking all members of a group out changes nothing but its own effect.

    Args:
        members: producers' rows and the consumer's columns.
        reader: name of the layer that reads the groups: `members` ends with its columns.
    """

    members: tuple[Member, ...]
    reader: str

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.members[-1].index)

    @property
    def columns(self) -> torch.Tensor:
        """int64 [groups, n]: columns of the reader by group."""
        return self.members[-1].index

    def weights(self, block: nn.Module) -> int:
        """Return the number of weights that go with one group, biases not counted."""
        layers = [(member, matrix(block.get_submodule(member.path))) for member in self.members]
        return sum(member.index.shape[1] * found.shape[1 - member.axis] for member, found in layers)


def feed_forward(config: Any, block: nn.Module) -> Groups:
    """Return the channels of a block's feed-forward network: row c of gate and up, column c of down.

    Raises:
        ModelError: if the family is not in the table, or the block is not built as its row says.
    """
    family = family_of(config)
    width = matrix(_layer(block, family.down)).shape[INPUTS]
    channel = torch.arange(width)[:, None]
    offsets = (0, width) if family.halves else (0,)
    producers = [Member(path, OUTPUTS, channel + offset) for path in family.up for offset in offsets]
    return _checked(block, Groups((*producers, Member(family.down, INPUTS, channel)), family.down))


def attention(config: Any, block: nn.Module) -> Groups:
    """Return a block's key-value heads, each with all query heads that share it: rows of q, k, v, columns of o.

    Norms of queries and keys are of one head's width and shared by all: they stay.

    Raises:
        ModelError: as `feed_forward`; or if the family's configuration cannot say that heads are missing.
    """
    family = family_of(config)
    if not family.heads:
        raise ModelError(
            f"the heads of {config.model_type!r} models cannot go: their width is the hidden width over their number",
            where="config.json",
            hint="prune channels only",
        )
    width, shared = head_width(config), int(config.num_attention_heads) // kv_heads(config)
    columns = matrix(_layer(block, family.output)).shape[INPUTS]
    count = columns // (shared * width)
    narrow = torch.arange(count * width).reshape(count, width)
    wide = torch.arange(columns).reshape(count, shared * width)
    if family.stacked:
        keys = narrow + columns
        rows = (wide, keys, keys + count * width)
        paths = family.heads * 3
    else:
        rows, paths = (wide, narrow, narrow), family.heads
    producers = [Member(path, OUTPUTS, index) for path, index in zip(paths, rows, strict=True)]
    return _checked(block, Groups((*producers, Member(family.output, INPUTS, wide)), family.output))


def prunes_heads(config: Any) -> bool:
    """Say whether a family's heads can be pruned."""
    return bool(family_of(config).heads)


def head_counts(config: Any, count: int) -> tuple[int, ...]:
    """Return the numbers of key-value heads up to `count` that the family's configuration takes for all layers."""
    shared = int(config.num_attention_heads) // kv_heads(config)
    divides = family_of(config).divides
    return tuple(
        one for one in range(1, count + 1) if not divides or config.hidden_size % (one * shared) == 0
    )


def head_width(config: Any) -> int:
    """Return the width of one head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads(config: Any) -> int:
    """Return the number of key-value heads that a configuration names."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def cut(block: nn.Module, groups: Groups, keep: torch.Tensor) -> None:
    """Take every group that is not kept out of a block, in place; parameters get new storage.

    Args:
        block: the block.
        groups: of this block as it is now.
        keep: int64 [k], ascending.
    """
    kept: dict[tuple[str, int], list[torch.Tensor]] = {}
    for member in groups.members:
        kept.setdefault((member.path, member.axis), []).append(member.index[keep].flatten())
    for (path, axis), indices in kept.items():
        _cut_layer(_layer(block, path), axis, torch.cat(indices).sort().values)


def silence(block: nn.Module, groups: Groups, keep: torch.Tensor) -> None:
    """Zero the reader's columns of every group that is not kept: what `cut` computes, at the old sizes."""
    mask = torch.zeros(groups.count, dtype=torch.bool)
    mask[keep] = True
    found = matrix(_layer(block, groups.reader))
    with torch.no_grad():
        found[:, groups.columns[~mask].flatten()] = 0


def matrix(layer: nn.Module) -> torch.Tensor:
    """Return a view of a linear layer's weights as [outputs, inputs]."""
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    return weight.T if isinstance(layer, Conv1D) else weight


def _cut_layer(layer: Linear, axis: int, index: torch.Tensor) -> None:
    transposed = isinstance(layer, Conv1D)
    index = index.to(layer.weight.device)
    layer.weight = _renewed(layer.weight, layer.weight.detach().index_select(axis ^ transposed, index))
    if axis == OUTPUTS and layer.bias is not None:
        layer.bias = _renewed(layer.bias, layer.bias.detach()[index])
    size: Any = layer
    if transposed:
        setattr(size, "nf" if axis == OUTPUTS else "nx", len(index))
    else:
        setattr(size, "out_features" if axis == OUTPUTS else "in_features", len(index))


def _renewed(old: torch.Tensor, values: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(values.contiguous(), requires_grad=old.requires_grad)


def _layer(block: nn.Module, path: str) -> Linear:
    try:
        found = block.get_submodule(path)
    except AttributeError as error:
        hint = "whole sub-modules may be gone, or the model was changed in memory"
        raise ModelError("this block has no such layer", where=path, hint=hint) from error
    if not isinstance(found, nn.Linear | Conv1D):
        raise ModelError(
            f"{type(found).__name__} is no linear layer", where=path, hint="merge adapters first"
        )
    return found


def _checked(block: nn.Module, groups: Groups) -> Groups:
    """Refuse groups that do not cover their layers: the model is not built as its configuration says."""
    covered: dict[tuple[str, int], int] = {}
    for member in groups.members:
        key = (member.path, member.axis)
        covered[key] = covered.get(key, 0) + member.index.numel()
    for (path, axis), size in covered.items():
        found = matrix(_layer(block, path)).shape[axis]
        if found != size or not size:
            raise ModelError(f"{found} rows or columns where the configuration says {size}", where=path)
    return groups
