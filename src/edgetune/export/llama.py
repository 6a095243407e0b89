"""Llama, Mistral, Qwen2 and Qwen3: RMS norms, gated SiLU, rotary positions."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from edgetune.export.layout import (
    Architecture,
    Config,
    RowOrder,
    Value,
    head_dim,
    interleaved,
    require,
    transformer_parameters,
)

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def rope(config: Config) -> dict[str, Value]:
    """Return the rotary hyper-parameters of a configuration with one kind of positions.

    Raises:
        ModelError: if the scaling is neither none, linear nor llama3.
    """
    given = config.rope_parameters
    kind = given.get("rope_type", "default")
    require(kind in ("default", "linear", "llama3"), f"rope scaling {kind!r}")
    require(given.get("partial_rotary_factor", 1.0) == 1.0, "rotary positions on a part of each head")
    found: dict[str, Value] = {"rope.freq_base": float(given["rope_theta"])}
    if kind == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(given["factor"])}
    return found


def llama3_factors(config: Config) -> dict[str, torch.Tensor]:
    """Return how much each rotary frequency is slowed down by Llama 3's scaling, or nothing for other scalings.

        factor_i = 1 for short waves, `factor` for long ones, 1 / ((1 - s) / factor + s) between
        s = (old / wave_i - low) / (high - low)

    Returns:
        {"rope_freqs.weight": float32 [head_dim / 2]} or {}.
    Source: transformers `_compute_llama3_parameters`; llama.cpp divides the frequencies by this tensor.
    """
    given = config.rope_parameters
    if given.get("rope_type") != "llama3":
        return {}
    low, high = given["low_freq_factor"], given["high_freq_factor"]
    old, factor = given["original_max_position_embeddings"], given["factor"]
    width = head_dim(config)
    exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
    waves = 2 * math.pi * given["rope_theta"] ** exponents
    smooth = (old / waves - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = torch.where(waves > old / low, torch.full_like(waves, factor), between)
    return {"rope_freqs.weight": torch.where(waves < old / high, torch.ones_like(waves), factors).float()}


def llama_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Llama or Mistral.

    Raises:
        ModelError: for another activation than SiLU, or a sliding window.
    """
    require(config.hidden_act == "silu", f"activation {config.hidden_act!r}")
    require(getattr(config, "sliding_window", None) is None, "a sliding attention window")
    return transformer_parameters(config) | rope(config)


def qwen_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Qwen2 or Qwen3; refuses what `llama_parameters` refuses."""
    require(config.hidden_act == "silu", f"activation {config.hidden_act!r}")
    require(not config.use_sliding_window, "a sliding attention window")
    require(config.rope_parameters.get("rope_type", "default") != "llama3", "rope scaling 'llama3'")
    return transformer_parameters(config) | rope(config)


INTERLEAVED: dict[str, RowOrder] = {
    "self_attn.q_proj": interleaved(lambda config: int(config.num_attention_heads)),
    "self_attn.k_proj": interleaved(lambda config: int(config.num_key_value_heads)),
}
"""Families whose rotary pairs stand side by side in llama.cpp."""

LLAMA = Architecture(
    name="llama",
    blocks="model.layers",
    names=NAMES,
    parameters=llama_parameters,
    rows=INTERLEAVED,
    tensors=llama3_factors,
)
QWEN2 = Architecture(name="qwen2", blocks="model.layers", names=NAMES, parameters=qwen_parameters)
QWEN3 = replace(
    QWEN2,
    name="qwen3",
    names=NAMES | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"},
)
