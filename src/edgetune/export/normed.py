"""Families with layer norms and one matrix each for queries, keys and values: Phi to Cohere."""

from __future__ import annotations

from dataclasses import replace

from edgetune.core.gguf_names import NAMES
from edgetune.export.gpt2 import GPT2
from edgetune.export.layout import Architecture, Config, Value, require, transformer_parameters
from edgetune.export.llama import without
from edgetune.export.rope import context_of_window, rope, window_notes

EPSILON = "attention.layer_norm_epsilon"
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python")
"""What llama.cpp computes as tanh GELU from a table; the exact GELU differs from that by less than the table does."""


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
