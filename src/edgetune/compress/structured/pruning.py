"""Prune a decoder in structures: score its groups, choose those that stay, cut block by block, restore the readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.structured.budget import Budget, Priced
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
from edgetune.compress.structured.repair import DAMPING, cut_and_restore
from edgetune.compress.structured.settled import settle, widths_in
from edgetune.core.batch import Batch
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
    damping: float = DAMPING


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


def repair(
    model: PreTrainedModel, parent: PreTrainedModel, calibration: Sequence[Batch], progress: Progress = silent
) -> None:
    """Restore the readers that a model has left after whole sub-modules went, in place.

    Args:
        model: without some sub-modules of its parent, and otherwise equal to it.
        parent: the dense model, left as it is.
        calibration, progress: as in `prune_model`.

    Raises:
        DataError, ModelError: as `cut_and_restore`.
    """
    kinds = groups_in(model)
    keep = [[torch.arange(groups.count) for groups in own] for own in kinds]
    cut_and_restore(model, kinds, keep, calibration, progress=progress, parent=parent)


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
