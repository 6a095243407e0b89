"""What stands in a decoder block where a sub-module has been removed: nothing is added to the residual stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

ATTENTION, FEED_FORWARD = "self_attn", "mlp"
"""Names of the two sub-modules in every family of which whole ones can be removed."""
NORMS = {ATTENTION: "input_layernorm", FEED_FORWARD: "post_attention_layernorm"}
"""The norm in front of each, which nothing reads once its sub-module is gone."""


class NoAttention(nn.Module):
    """Attention that gives zeros, and keeps the count of tokens in a key-value cache as any other does.

    Args:
        layer_idx: number of the layer.
    """

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(
        self, hidden_states: torch.Tensor, *_: Any, past_key_values: Any = None, **__: Any
    ) -> tuple[torch.Tensor, None]:
        """Return zeros like the hidden states, and no attention weights."""
        if past_key_values is not None:  # the mask of all layers is as long as the cache of one
            count = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            past_key_values.update(count, count, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoFeedForward(nn.Module):
    """A feed-forward network that gives zeros."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return zeros like the hidden states."""
        return torch.zeros_like(hidden_states)


def remove(block: nn.Module, name: str, layer: int) -> None:
    """Take a whole sub-module out of a block, with the norm in front of it.

    Args:
        block: a decoder block; changed in place.
        name: ATTENTION or FEED_FORWARD.
        layer: number of the block.
    """
    setattr(block, name, NoAttention(layer) if name == ATTENTION else NoFeedForward())
    setattr(block, NORMS[name], nn.Identity())
