"""The table of model families that can be pruned in structures; adding one is one row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edgetune.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Family:
    """Where a decoder block of a family keeps its feed-forward channels and its heads.

    Args:
        up: layers whose output rows are channels: gate and up, or up alone.
        down: the layer that reads the channels.
        halves: `up` is one matrix of two halves, gate over up.
        heads: query, key and value layers; empty where no configuration can say that heads are missing.
        output: the layer that reads the heads.
        stacked: the three of `heads` are one matrix, queries over keys over values.
        width: field of the configuration that counts the channels.
        adds: what the readers give is added to the residual stream as it is, that of the heads first.
        divides: the configuration wants a hidden width that is a multiple of the number of heads, whatever their width.
        by_layer: layers may differ, and whole sub-modules go: the block is `x + attention(norm(x))`, then
            `x + feed_forward(norm(x))`, and reads its sizes from its weights.
    """

    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    halves: bool = False
    heads: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    stacked: bool = False
    width: str = "intermediate_size"
    by_layer: bool = False
    adds: bool = False
    divides: bool = False


LLAMA = Family(by_layer=True, adds=True)
GEMMA = Family()
"""As Llama, with norms behind the sub-modules in its later versions."""
PHI3 = Family(up=("mlp.gate_up_proj",), halves=True, heads=("self_attn.qkv_proj",), stacked=True)
GLM4 = Family(up=("mlp.gate_up_proj",), halves=True)
UNGATED = replace(LLAMA, up=("mlp.up_proj",))
STARCODER2 = Family(up=("mlp.c_fc",), down="mlp.c_proj")
PHI = Family(up=("mlp.fc1",), down="mlp.fc2", output="self_attn.dense")
CHANNELS = Family(heads=())
"""The width of a head is the hidden width over their number: heads cannot go."""
OPT = replace(CHANNELS, up=("fc1",), down="fc2", width="ffn_dim")
GPT2 = replace(CHANNELS, up=("mlp.c_fc",), down="mlp.c_proj", width="n_inner")

FAMILIES = {
    "llama": replace(LLAMA, divides=True),
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "smollm3": LLAMA,
    "granite": replace(LLAMA, adds=False),
    "seed_oss": LLAMA,
    "ernie4_5": LLAMA,
    "hunyuan_v1_dense": LLAMA,
    "arcee": replace(UNGATED, divides=True),
    "nemotron": replace(UNGATED, by_layer=False),
    "gemma": LLAMA,
    "gemma2": replace(GEMMA, divides=True),
    "gemma3_text": replace(GEMMA, divides=True),
    "olmo": GEMMA,
    "cohere": GEMMA,
    "phi3": PHI3,
    "glm4": GLM4,
    "starcoder2": STARCODER2,
    "phi": PHI,
    "stablelm": CHANNELS,
    "opt": OPT,
    "gpt2": GPT2,
}
"""`model_type` of a `transformers` configuration to its row."""


def family_of(config: Any) -> Family:
    """Return the row of a configuration.

    Args:
        config: a `transformers` configuration; `model_type` decides.

    Raises:
        ModelError: if the family cannot be pruned in structures; names those that can.
    """
    found = FAMILIES.get(config.model_type)
    if found is None:
        raise ModelError(
            f"models of type {config.model_type!r} cannot be pruned in structures",
            where="config.json",
            hint=f"supported: {', '.join(FAMILIES)}",
        )
    return found
