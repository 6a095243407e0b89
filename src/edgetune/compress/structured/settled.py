"""After a cut: the model's configuration and modules say how wide its layers are now."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from edgetune.compress.blocks import decoder_blocks
from edgetune.compress.structured.families import family_of
from edgetune.compress.structured.groups import attention, feed_forward, head_width, kv_heads
from edgetune.core.errors import ModelError
from edgetune.core.removed import NoAttention, NoFeedForward
from edgetune.core.widths import ATTRIBUTE, Widths

COUNTS = ("num_heads", "num_attention_heads", "num_key_value_heads", "intermediate_size")
"""Attributes in which modules of some families repeat what the configuration says."""


def widths_in(model: PreTrainedModel) -> Widths:
    """Return how wide the layers of a model are, read from its weights.

    Raises:
        ModelError: if its family is not in the table.
    """
    config: Any = model.config
    family, shared = family_of(config), int(config.num_attention_heads) // kv_heads(config)
    channels, kv = [], []
    for block in decoder_blocks(model):
        modules = [type(module) for module in block.modules()]
        channels.append(0 if NoFeedForward in modules else feed_forward(config, block).count)
        if not family.heads:
            kv.append(kv_heads(config))
        else:
            kv.append(0 if NoAttention in modules else attention(config, block).count)
    return Widths(tuple(channels), tuple(shared * one for one in kv), tuple(kv))


def settle(model: PreTrainedModel, widths: Widths) -> None:
    """Write widths into a model's configuration: ordinary fields where all layers are alike, else layer by layer.

    Args:
        model: has these widths; its configuration and the copies of it in its modules are changed.
        widths: of its layers.

    Raises:
        ModelError: if layers differ in a family of which the table does not say that they may.
    """
    config: Any = model.config
    family = family_of(config)
    if widths.uniform:
        if family.heads:
            config.head_dim = head_width(config)  # else it would be the hidden width over fewer heads
            config.num_attention_heads, config.num_key_value_heads = widths.heads[0], widths.kv_heads[0]
        setattr(config, family.width, widths.feed_forward[0])
        if hasattr(config, ATTRIBUTE):
            delattr(config, ATTRIBUTE)
        _tell_modules(model)
    elif not family.by_layer:
        raise ModelError(
            f"the layers of {config.model_type!r} models have to be alike", hint="prune with a uniform width"
        )
    else:
        setattr(config, ATTRIBUTE, widths.as_json())


def _tell_modules(model: PreTrainedModel) -> None:
    config: Any = model.config
    said = {
        "num_heads": config.num_attention_heads,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": kv_heads(config),
        "intermediate_size": getattr(config, family_of(config).width),
    }
    for block in decoder_blocks(model):
        for module in block.modules():
            for name in COUNTS:
                if isinstance(module.__dict__.get(name), int):
                    setattr(module, name, said[name])


def block_weights(model: PreTrainedModel) -> int:
    """Return the number of parameters in a decoder's blocks."""
    return sum(weight.numel() for weight in decoder_blocks(model).parameters())
