"""Whole sub-modules out of a decoder: those whose absence costs least, one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.structured.budget import check_ratio
from edgetune.compress.structured.families import family_of
from edgetune.compress.structured.settled import settle, widths_in
from edgetune.core.errors import ModelError
from edgetune.core.progress import Progress, silent
from edgetune.core.removed import ATTENTION, FEED_FORWARD, NORMS, NoAttention, NoFeedForward, remove

OVERSHOOT = 0.1
"""Share of what is to be removed by which the last sub-module may exceed it."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A sub-module that has gone.

    Args:
        layer: number of its block.
        name: ATTENTION or FEED_FORWARD.
        cost: what the judge said of the model without it.
        weights: parameters that went, with the norm in front.
    """

    layer: int
    name: str
    cost: float
    weights: int


def drop_modules(
    model: PreTrainedModel,
    ratio: float,
    judge: Callable[[PreTrainedModel], float],
    names: Sequence[str] = (ATTENTION, FEED_FORWARD),
    progress: Progress = silent,
) -> list[Dropped]:
    """Remove the sub-module without which the model is best, again and again, in place.

    Args:
        model: a decoder whose family may have layers of different widths.
        ratio: share of the blocks' parameters to remove, in (0, 1).
        judge: a number to keep low: loss or KL to the dense model on calibration text.
        names: what may go; 2SSP takes attention alone.
        progress: told of every removal.

    Returns:
        What went, in order; empty if nothing is small enough for the share.

    Raises:
        ModelError: if the family cannot do without whole sub-modules.
        ConfigError: a share out of range.
    Cost: one run of the judge for every sub-module that is left, for every one that goes.
    Source: 2SSP (arXiv 2501.17771), stage 2; greedy where its reference measures once.
    """
    check_ratio(ratio)
    if not family_of(model.config).by_layer:
        kind = getattr(model.config, "model_type", type(model).__name__)
        raise ModelError(f"whole sub-modules of {kind!r} models cannot go", hint="prune with a uniform width")
    blocks, gone = decoder_blocks(model), list[Dropped]()
    left = ratio * sum(weight.numel() for weight in blocks.parameters())
    target, training = left, model.training
    model.train(False)
    try:
        while candidates := _candidates(blocks, names, left + OVERSHOOT * target):
            judged = []
            for layer, name, weights in candidates:
                with _without(blocks[layer], name, layer):
                    judged.append(Dropped(layer, name, judge(model), weights))
            best = min(judged, key=lambda one: (one.cost, one.layer, one.name))
            remove(blocks[best.layer], best.name, best.layer)
            gone.append(best)
            left -= best.weights
            progress("pruning: sub-modules", int(target - left), int(target))
    finally:
        model.train(training)
    settle(model, widths_in(model))
    return gone


def _candidates(blocks: nn.ModuleList, names: Sequence[str], most: float) -> list[tuple[int, str, int]]:
    found = []
    for layer, block in enumerate(blocks):
        for name in names:
            module = block.get_submodule(name)
            norm = block.get_submodule(NORMS[name])
            if isinstance(module, NoAttention | NoFeedForward):
                continue
            weights = sum(weight.numel() for one in (module, norm) for weight in one.parameters())
            if weights <= most:
                found.append((layer, name, weights))
    return found


class _without:
    """A block without one of its sub-modules, for a while."""

    def __init__(self, block: nn.Module, name: str, layer: int) -> None:
        self._block, self._name, self._layer = block, name, layer
        self._kept = {one: block.get_submodule(one) for one in (name, NORMS[name])}

    def __enter__(self) -> None:
        remove(self._block, self._name, self._layer)

    def __exit__(self, *_: object) -> None:
        for name, module in self._kept.items():
            setattr(self._block, name, module)
