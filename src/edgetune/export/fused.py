"""Families with layer norms whose queries, keys and values are one matrix: GPT-NeoX, Falcon, MPT, BLOOM."""

from __future__ import annotations

import torch

from edgetune.export.layout import Architecture, Config, RowOrder, Value, require
from edgetune.export.llama import without
from edgetune.export.normed import EPSILON, GELU, gelu, normed

BLOOM_CONTEXT = 2048
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


def neox_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a GPT-NeoX."""
    require(config.attention_bias, "attention without biases")
    return gelu(config) | {
        "attention.head_count_kv": config.num_attention_heads,
        "use_parallel_residual": bool(config.use_parallel_residual),
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
