"""Cut a decoder block by block, and restore every reader so that the residual stream is what it was."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks, read_matrix, write_matrix
from edgetune.compress.capture import capture
from edgetune.compress.streams import Stream, twin
from edgetune.compress.structured.budget import Keep
from edgetune.compress.structured.families import family_of
from edgetune.compress.structured.groups import Groups, cut
from edgetune.compress.structured.restore import Wanted, restored
from edgetune.compress.walk import inputs_of
from edgetune.core.batch import Batch
from edgetune.core.errors import DataError
from edgetune.core.progress import Progress, silent
from edgetune.core.removed import FEED_FORWARD, NORMS

DAMPING = 0.03
"""Of the least squares, in means of the diagonal: within 1 % of the best of 0.001 to 0.3 on a quarter of the
calibration text of two models that nothing was fitted to."""


@torch.no_grad()
def cut_and_restore(
    model: PreTrainedModel,
    kinds: Sequence[Sequence[Groups]],
    keep: Keep,
    calibration: Sequence[Batch],
    damping: float = DAMPING,
    progress: Progress = silent,
    parent: PreTrainedModel | None = None,
) -> None:
    """Cut block by block; every reader behind the first cut is restored on what the pruned model gives it to read.

        wanted outputs = W Y + (R_dense - R)

    Y are the reader's inputs in the dense model, which runs beside, and R the residual stream that its outputs are
    added to: what has been lost before is made up for as well. Families that do more than add get W Y.

    Args:
        model: changed in place.
        kinds: the groups of every block, in the order in which the block computes them.
        keep: which of them stay.
        calibration: at least one batch.
        damping: of the least squares.
        progress: told of every block.
        parent: the dense model, where the given one has lost sub-modules already; itself if not given.

    Raises:
        DataError: no calibration text.
        ModelError: if the inputs of a reader are not finite.
    Cost: about four forward passes over the calibration tokens in both models; two hidden states a token, one dense
        block and the moments of one reader.
    """
    if not calibration:
        raise DataError("compensation needs calibration text", hint="--no-compensate does without")
    blocks, adds = decoder_blocks(model), family_of(model.config).adds
    dense_blocks = blocks if parent is None else decoder_blocks(parent)
    streams, touched = capture(model, blocks, calibration), parent is not None
    for stream in streams:
        stream.dense = stream.hidden
    for index, (block, own, kept) in enumerate(zip(blocks, kinds, keep, strict=True)):
        dense = dense_blocks[index] if parent is not None else deepcopy(block)
        for groups, some in zip(own, kept, strict=True):
            touched = touched or len(some) < groups.count
            if touched:
                _cut_one(block, dense, index, streams, groups, some, damping, adds=adds)
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
    *,
    adds: bool,
) -> None:
    reader: Any = block.get_submodule(groups.reader)
    weights = read_matrix(reader)
    wanted = Wanted(weights.shape[0], weights.shape[1], weights.device)
    for stream in streams:
        inputs, was = inputs_of(reader, block, stream, index), stream.as_it_was()
        before = None if was is None else inputs_of(twin(reader, block, dense), dense, was, index)
        if inputs is None or was is None or before is None:
            continue
        outputs = before.to(torch.float32) @ weights.T
        if adds:
            now, then = _residual(groups, block, stream, index), _residual(groups, dense, was, index)
            outputs += then - now
        wanted.add(inputs, outputs)
    cut(block, groups, keep)
    if wanted.inputs.tokens:
        columns = groups.columns[keep].flatten().sort().values.to(weights.device)
        name = f"block {index}, {groups.reader}"
        write_matrix(reader, restored(weights, wanted, columns, damping, name=name))


def _residual(groups: Groups, block: nn.Module, stream: Stream, index: int) -> torch.Tensor:
    """Return the residual stream that a reader's outputs are added to, float [n, width] without padding."""
    found = None
    if groups.reader.startswith(FEED_FORWARD):
        found = inputs_of(block.get_submodule(NORMS[FEED_FORWARD]), block, stream, index)
    return stream.tokens(stream.hidden) if found is None else found
