"""Llamas whose layers differ in width, in llama.cpp's architecture `deci`."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgetune.core.errors import ModelError
from edgetune.core.gguf_names import interleaved_rows
from edgetune.core.widths import Widths, widths_of
from edgetune.export.layout import Config, Value, head_dim
from edgetune.export.llama import LLAMA, llama_parameters, qwen_parameters

NOTHING = 32
"""Channels of a feed-forward network of zeros, the narrowest that every block format holds."""


def widths(config: Config) -> Widths:
    """Return the widths of a configuration that has some.

    Raises:
        ModelError: if it has none.
    """
    found = widths_of(config)
    if found is None:
        raise ModelError("this configuration names no widths by layer", where="config.json")
    return found


def without_feed_forward(config: Config) -> list[int]:
    """Return the layers that get a feed-forward network of zeros.

    llama.cpp's graph goes on without a layer's attention where the network is missing, and does not pick the tokens
    that are asked for where the last one is.
    """
    found = widths(config)
    last = len(found.heads) - 1
    needed = [layer for layer, heads in enumerate(found.heads) if heads or layer == last]
    return [layer for layer in needed if not found.feed_forward[layer]]


def without_attention(config: Config) -> bool:
    """Say whether the first layer gets an attention of zeros: llama.cpp reads the width of heads only if it has one."""
    return not widths(config).heads[0]


def deci_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters: those of a Llama, with three of them by layer; 0 is a removed sub-module."""
    found, silent = widths(config), without_feed_forward(config)
    heads, first = (_shared(config), 1) if without_attention(config) else (0, 0)
    shared = qwen_parameters(config) if config.model_type == "qwen2" else llama_parameters(config)
    channels = [NOTHING if layer in silent else width for layer, width in enumerate(found.feed_forward)]
    return shared | {
        "feed_forward_length": channels,
        "attention.head_count": [found.heads[0] or heads, *found.heads[1:]],
        "attention.head_count_kv": [found.kv_heads[0] or first, *found.kv_heads[1:]],
    }


def deci_tensors(config: Config) -> dict[str, torch.Tensor]:
    """Return a Llama's derived tensors, and sub-modules of zeros where llama.cpp needs one."""
    tensors = LLAMA.tensors(config) if config.model_type == "llama" else {}
    width = int(config.hidden_size)
    for layer in without_feed_forward(config):
        tensors |= _zeros(f"blk.{layer}.ffn", ("gate", "up"), "down", width, NOTHING)
    if without_attention(config):
        one = head_dim(config)  # one key-value head, and as many others on it as in every other layer
        tensors |= _zeros("blk.0.attn", ("k", "v"), None, width, one)
        tensors |= _zeros("blk.0.attn", ("q",), "output", width, one * _shared(config))
    return tensors


def _zeros(
    stem: str, readers: tuple[str, ...], writer: str | None, width: int, inner: int
) -> dict[str, torch.Tensor]:
    found = {f"{stem}_{name}.weight": torch.zeros(inner, width) for name in readers}
    if writer is not None:
        found |= {
            f"{stem}_{writer}.weight": torch.zeros(width, inner),
            f"{stem}_norm.weight": torch.ones(width),
        }
    return found


def _shared(config: Config) -> int:
    """Return how many heads share a key-value head."""
    return int(config.num_attention_heads) // int(config.num_key_value_heads)


def _by_head(config: Config, rows: int) -> torch.Tensor:
    return interleaved_rows(rows, rows // head_dim(config))


DECI = replace(
    LLAMA,
    name="deci",
    parameters=deci_parameters,
    rows={"self_attn.q_proj": _by_head, "self_attn.k_proj": _by_head},
    tensors=deci_tensors,
)
DECI_TYPES = ("llama", "mistral", "qwen2")
"""Families that compute what the graph computes; a rotation of half-split pairs becomes one of neighbours."""
