"""Prune a decoder in structures: score its groups, choose those that stay, cut block by block, restore the readers."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks, read_matrix, write_matrix
from edgetune.compress.capture import capture
from edgetune.compress.hessian import Hessian
from edgetune.compress.streams import Stream, twin
from edgetune.compress.structured.budget import Budget, Keep, Priced
from edgetune.compress.structured.evidence import gather
from edgetune.compress.structured.groups import (
    Groups,
    attention,
    cut,
    feed_forward,
    head_counts,
    prunes_heads,
)
from edgetune.compress.structured.importance import Importance, score_blocks
from edgetune.compress.structured.restore import restored
from edgetune.compress.structured.settled import settle, widths_in
from edgetune.compress.walk import inputs_of
from edgetune.core.batch import Batch
from edgetune.core.errors import DataError
from edgetune.core.progress import Progress, silent
from edgetune.core.removed import NoAttention, NoFeedForward
from edgetune.core.widths import Widths


@dataclass(frozen=True, slots=True)
class Structured:
    """How to prune in structures.

    Args:
        ratio: share of the weights of all heads and channels to remove, in (0, 1).
        importance: what a group is worth.
        budget: which groups stay.
        compensate: restore the readers of what stays by least squares.
        damping: of the least squares, in means of the diagonal.
    """

    ratio: float
    importance: Importance
    budget: Budget
    compensate: bool = True
    damping: float = 0.01


def prune_model(
    model: PreTrainedModel, calibration: Sequence[Batch], method: Structured, progress: Progress = silent
) -> Widths:
    """Prune a model in place.

    Args:
        model: a decoder of a family in the table; its parameters get new storage.
        calibration: batches; scores by gradients take the loss of their labels, everything else all real tokens.
        method: how.
        progress: told of every block.

    Returns:
        The widths of its layers, which its configuration says from now on.

    Raises:
        ModelError: a family or a block that the table has no row for; gradients or activations that are not finite.
        ConfigError: a share out of range.
        DataError: calibration text is needed and there is none.
    Cost: of the importance (`evidence.gather`); with compensation three forward passes over the calibration tokens,
        and one Hessian at a time.
    Source: LLM-Pruner (arXiv 2305.11627); compensation as in FASP (2501.09412).
    """
    kinds = groups_in(model)
    training = model.training
    model.train(False)
    try:
        evidence = gather(model, kinds, calibration, method.importance.hears)
        scores = score_blocks(model, kinds, method.importance, evidence)
        keep = method.budget.keep(_priced(model, kinds, scores), method.ratio)
        if method.compensate:
            cut_and_restore(model, kinds, keep, calibration, method.damping, progress)
        else:
            for block, own, kept in zip(decoder_blocks(model), kinds, keep, strict=True):
                for groups, some in zip(own, kept, strict=True):
                    cut(block, groups, some)
    finally:
        model.train(training)
    widths = widths_in(model)
    settle(model, widths)
    return widths


def groups_in(model: PreTrainedModel) -> list[list[Groups]]:
    """Return the groups of every block: heads where the family's can go, then channels; none of removed modules."""
    config: Any = model.config
    found = []
    for block in decoder_blocks(model):
        gone = {type(module) for module in block.modules()}
        own = [attention(config, block)] if prunes_heads(config) and NoAttention not in gone else []
        found.append(own + ([feed_forward(config, block)] if NoFeedForward not in gone else []))
    return found


def _priced(
    model: PreTrainedModel, kinds: Sequence[Sequence[Groups]], scores: Sequence[Sequence[torch.Tensor]]
) -> list[list[Priced]]:
    found = []
    for block, own, values in zip(decoder_blocks(model), kinds, scores, strict=True):
        priced = []
        for groups, score in zip(own, values, strict=True):
            fine = groups.columns.shape[1] == 1
            counts = () if fine else head_counts(model.config, groups.count)
            priced.append(Priced(groups, groups.weights(block), score, fine, counts))
        found.append(priced)
    return found


@torch.no_grad()
def cut_and_restore(
    model: PreTrainedModel,
    kinds: Sequence[Sequence[Groups]],
    keep: Keep,
    calibration: Sequence[Batch],
    damping: float,
    progress: Progress = silent,
) -> None:
    """Cut block by block; every reader is restored on the inputs that the pruned model before it gives.

    The target is the reader's output in the dense model, which runs beside.

    Args:
        model: changed in place.
        kinds: the groups of every block, in the order in which the block computes them.
        keep: which of them stay.
        calibration: at least one real token.
        damping: of the least squares.
        progress: told of every block.

    Raises:
        DataError: no calibration text.
        ModelError: if the inputs of a reader are not finite.
    Cost: three forward passes over the calibration tokens; two hidden states a token, one dense block and one Hessian.
    """
    if not calibration:
        raise DataError("compensation needs calibration text", hint="--no-compensate does without")
    blocks = decoder_blocks(model)
    streams = capture(model, blocks, calibration)
    for stream in streams:
        stream.dense = stream.hidden
    for index, (block, own, kept) in enumerate(zip(blocks, kinds, keep, strict=True)):
        dense = deepcopy(block)
        for groups, some in zip(own, kept, strict=True):
            if len(some) < groups.count:
                _cut_one(block, dense, index, streams, groups, some, damping)
        for stream in streams if index + 1 < len(blocks) else ():
            stream.hidden, was = stream.run(block, index), stream.as_it_was()
            stream.dense = None if was is None else was.run(dense, index)
        progress("pruning: blocks", index + 1, len(blocks))


def _cut_one(
    block: nn.Module,
    dense: nn.Module,
    index: int,
    streams: Sequence[Stream],
    groups: Groups,
    keep: torch.Tensor,
    damping: float,
) -> None:
    reader: Any = block.get_submodule(groups.reader)
    weights = read_matrix(reader)
    moments = Hessian(weights.shape[1], weights.device, dense=True)
    for stream in streams:
        inputs, was = inputs_of(reader, block, stream, index), stream.as_it_was()
        if inputs is not None and was is not None:
            moments.add(inputs, inputs_of(twin(reader, block, dense), dense, was, index))
    cut(block, groups, keep)
    if moments.cross is not None and moments.tokens:
        columns = groups.columns[keep].flatten().sort().values.to(weights.device)
        name = f"block {index}, {groups.reader}"
        write_matrix(reader, restored(weights, moments.matrix, moments.cross, columns, damping, name=name))
