"""Families with layer norms: GPT-NeoX, Phi, StarCoder 1 and 2, Falcon, MPT, BLOOM, StableLM, Nemotron, Cohere."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgetune.core.gguf_names import NAMES
from edgetune.export.gpt2 import GPT2
from edgetune.export.layout import Architecture, Config, RowOrder, Value, require, transformer_parameters
from edgetune.export.llama import without
from edgetune.export.rope import context_of_window, rope, window_notes

EPSILON = "attention.layer_norm_epsilon"
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python")
"""What llama.cpp computes as tanh GELU from a table; the exact GELU differs from that by less than the table does."""

OUTPUTS = 3
"""Queries, keys and values, one after another in each head."""


def by_part(heads: str) -> RowOrder:
    """Return the row order of a fused matrix that holds q, k and v head by head: all q, then all k, then all v."""

    def order(config: Config, rows: int) -> torch.Tensor:
        count = getattr(config, heads)
        return torch.arange(rows).reshape(count, OUTPUTS, -1).transpose(0, 1).reshape(rows)

    return order


def falcon_order(config: Config, rows: int) -> torch.Tensor:
    """Return the row order of Falcon's fused matrix, which holds the queries of a group, its key and its value."""
    if not config.new_decoder_architecture:
        return torch.arange(rows) if config.multi_query else by_part("num_attention_heads")(config, rows)
    groups = config.num_kv_heads
    parts = torch.arange(rows).reshape(groups, config.num_attention_heads // groups + 2, -1)
    return torch.cat([parts[:, :-2].flatten(), parts[:, -2].flatten(), parts[:, -1].flatten()])


def normed(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a rotary family with layer norms."""
    return transformer_parameters(config, norm=EPSILON) | rope(config, scalings=("default",))


def gelu(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a rotary family with layer norms and GELU.

    Raises:
        ModelError: for another activation.
    """
    require(config.hidden_act in GELU, f"activation {config.hidden_act!r}")
    return normed(config)


def neox_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a GPT-NeoX."""
    require(config.attention_bias, "attention without biases")
    return gelu(config) | {
        "attention.head_count_kv": config.num_attention_heads,
        "use_parallel_residual": bool(config.use_parallel_residual),
    }


def phi_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Phi-1 or Phi-2."""
    require(not config.qk_layernorm, "norms of queries and keys")
    return gelu(config)


def starcoder2_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a StarCoder2; the context is no longer than an attention window."""
    require(config.use_bias, "layers without biases")
    return gelu(config) | context_of_window(config)


def stablelm_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a StableLM."""
    require(config.hidden_act == "silu", f"activation {config.hidden_act!r}")
    require(not config.qk_layernorm, "norms of queries and keys")
    return normed(config) | {"use_parallel_residual": bool(config.use_parallel_residual)}


def nemotron_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Nemotron: squared ReLU without a gate, norms that multiply by 1 + w."""
    require(config.hidden_act == "relu2", f"activation {config.hidden_act!r}")
    return normed(config)


def cohere_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Cohere (Command R)."""
    require(config.hidden_act == "silu", f"activation {config.hidden_act!r}")
    require(not config.use_qk_norm, "norms of queries and keys")
    return normed(config) | {"logit_scale": float(config.logit_scale)}


def cohere2_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Cohere 2: windows with positions, and every fourth layer without either."""
    require(config.hidden_act == "silu", f"activation {config.hidden_act!r}")
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    return normed(config) | {
        "logit_scale": float(config.logit_scale),
        "attention.sliding_window": int(config.sliding_window),
        "attention.sliding_window_pattern": windows,
    }


def falcon_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Falcon.

    Raises:
        ModelError: for the models with ALiBi, biases, or attention before the feed-forward layer.
    """
    require(not config.alibi, "ALiBi")
    require(not config.bias, "biases")
    require(config.activation in GELU, f"activation {config.activation!r}")
    new, alone = config.new_decoder_architecture, config.multi_query
    require(new or config.parallel_attn, "attention before the feed-forward layer")
    require(not new or config.num_ln_in_parallel_attn in (None, 2), "one norm for two layers")
    config = Flat(config, intermediate_size=config.ffn_hidden_size)
    groups = config.num_kv_heads if new else 1 if alone else config.num_attention_heads
    return normed(config) | {"attention.head_count_kv": groups}


def mpt_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of an MPT.

    Raises:
        ModelError: for models without ALiBi, or with a prefix, scaled or normed attention.
    """
    given = config.attn_config
    require(bool(given.alibi), "learned positions")
    require(not given.qk_ln and not given.prefix_lm, "norms of queries and keys, or a prefix")
    require(given.softmax_scale is None, "an attention scale of its own")
    require(not given.attn_pdrop or config.no_bias, "biases")
    found: dict[str, Value] = {
        "context_length": config.max_seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": 4 * config.hidden_size,
        "attention.head_count": config.n_heads,
        EPSILON: float(config.layer_norm_epsilon),
        "attention.max_alibi_bias": float(given.alibi_bias_max),
        "vocab_size": config.vocab_size,
    }
    return found if given.clip_qkv is None else found | {"attention.clamp_kqv": float(given.clip_qkv)}


def bloom_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a BLOOM, whose positions (ALiBi) have no end; its training context is taken."""
    require(not config.apply_residual_connection_post_layernorm, "residuals behind the norms")
    return {
        "context_length": getattr(config, "seq_length", None) or BLOOM_CONTEXT,
        "embedding_length": config.hidden_size,
        "block_count": config.n_layer,
        "feed_forward_length": 4 * config.hidden_size,
        "attention.head_count": config.n_head,
        EPSILON: float(config.layer_norm_epsilon),
        "vocab_size": config.vocab_size,
    }


def bigcode_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a StarCoder (GPT-BigCode)."""
    require(config.activation_function in GELU, f"activation {config.activation_function!r}")
    require(
        config.multi_query and config.scale_attn_weights, "several keys and values, or unscaled attention"
    )
    return {
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": 1,
        EPSILON: float(config.layer_norm_epsilon),
        "vocab_size": config.vocab_size,
    }


class Flat:
    """A configuration with some fields under the names that Llama uses.

    Args:
        config: any.
        fields: name to value.
    """

    def __init__(self, config: Config, **fields: object) -> None:
        self._config = config
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> object:
        return getattr(self._config, name)


BLOOM_CONTEXT = 2048
FUSED = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
GPTNEOX = Architecture(
    name="gptneox",
    blocks="gpt_neox.layers",
    names=FUSED
    | {
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.final_layer_norm": "output_norm",
        "lm_head": "output",
        "attention.query_key_value": "attn_qkv",
        "attention.dense": "attn_output",
    },
    parameters=neox_parameters,
    rows={"attention.query_key_value": by_part("num_attention_heads")},
    own_head=True,
)
BLOOM = Architecture(
    name="bloom",
    blocks="transformer.h",
    names=FUSED
    | {
        "transformer.word_embeddings": "token_embd",
        "transformer.word_embeddings_layernorm": "token_embd_norm",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
    },
    parameters=bloom_parameters,
    rows={"self_attention.query_key_value": by_part("n_head")},
)
FALCON = Architecture(
    name="falcon",
    blocks="transformer.h",
    names=without(FUSED, "post_attention_layernorm")
    | {
        "transformer.word_embeddings": "token_embd",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
        "ln_attn": "attn_norm_2",
        "ln_mlp": "attn_norm",
        "self_attention.query_key_value": "attn_qkv",
        "self_attention.dense": "attn_output",
    },
    parameters=falcon_parameters,
    rows={"self_attention.query_key_value": falcon_order},
)
MPT = Architecture(
    name="mpt",
    blocks="transformer.blocks",
    names={
        "transformer.wte": "token_embd",
        "transformer.norm_f": "output_norm",
        "lm_head": "output",
        "norm_1": "attn_norm",
        "norm_2": "ffn_norm",
        "attn.Wqkv": "attn_qkv",
        "attn.out_proj": "attn_output",
        "ffn.up_proj": "ffn_up",
        "ffn.down_proj": "ffn_down",
    },
    parameters=mpt_parameters,
)
PHI2 = Architecture(
    name="phi2",
    blocks="model.layers",
    names=without(NAMES, "post_attention_layernorm", "model.norm")
    | {
        "model.final_layernorm": "output_norm",
        "self_attn.dense": "attn_output",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    },
    parameters=phi_parameters,
    own_head=True,
)
STARCODER2 = Architecture(
    name="starcoder2",
    blocks="model.layers",
    names=without(NAMES, "mlp.gate_proj") | {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
    parameters=starcoder2_parameters,
    notes=window_notes,
)
STABLELM = Architecture(
    name="stablelm", blocks="model.layers", names=NAMES, parameters=stablelm_parameters, own_head=True
)
NEMOTRON = Architecture(
    name="nemotron",
    blocks="model.layers",
    names=without(NAMES, "mlp.gate_proj"),
    parameters=nemotron_parameters,
    norm_offset=1.0,
    own_head=True,
)
COHERE = Architecture(
    name="command-r",
    blocks="model.layers",
    names=without(NAMES, "post_attention_layernorm"),
    parameters=cohere_parameters,
)
COHERE2 = replace(COHERE, name="cohere2", parameters=cohere2_parameters)
STARCODER = replace(GPT2, name="starcoder", parameters=bigcode_parameters, transposed=frozenset())
