"""Blocks of a model that compute again in a backward pass what they would have kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


@contextmanager
def recomputed(model: nn.Module) -> Iterator[int]:
    """While entered, of every block only what it is given is kept until the backward pass.

        peak: blocks x tokens x hidden numbers, and what one block keeps,   in place of what all keep

    Blocks are what transformers marks as such, the outermost where they are nested. A model that is switched to
    training is not needed, unlike for `gradient_checkpointing_enable`: dropout stays off.

    Args:
        model: of transformers.

    Returns:
        The number of blocks; 0 where a model marks none, and everything is kept.

    Cost: each block's forward pass once more.
    Source: Chen et al. 2016, arXiv:1604.06174; torch.utils.checkpoint.
    """
    blocks = list(_blocks(model))
    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.forward = _again(block.forward)
        yield len(blocks)
    finally:
        for block, before in zip(blocks, own, strict=True):
            if before is None:
                del block.forward
            else:
                block.forward = before


def _again(forward: Callable[..., Any]) -> Callable[..., Any]:
    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, GradientCheckpointingLayer):
            yield child
        else:
            yield from _blocks(child)
