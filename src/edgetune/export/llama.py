"""Llama and the families like it: RMS norms, gated SiLU, rotary positions."""

from __future__ import annotations

from dataclasses import replace

from edgetune.core.gguf_names import HEAD_NORMS, NAMES
from edgetune.export.layout import (
    Architecture,
    Config,
    RowOrder,
    Value,
    interleaved,
    require,
    transformer_parameters,
)
from edgetune.export.rope import (
    context_of_window,
    llama3_factors,
    longrope,
    longrope_factors,
    rope,
    rope_of,
    window_notes,
)

AFTER = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
"""Norms behind attention and feed-forward layer."""

INTERLEAVED: dict[str, RowOrder] = {
    "self_attn.q_proj": interleaved(lambda config: int(config.num_attention_heads)),
    "self_attn.k_proj": interleaved(lambda config: int(config.num_key_value_heads)),
}
"""For families whose rotary pairs stand side by side in llama.cpp and half a head apart in transformers."""

SMOLLM3_PERIOD = 4
"""Every so many layers llama.cpp leaves positions out in a SmolLM3."""


def gated(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a family with gated SiLU.

    Raises:
        ModelError: for another activation.
    """
    require(config.hidden_act == "silu", f"activation {config.hidden_act!r}")
    return transformer_parameters(config)


def llama_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Llama or Mistral; the context is no longer than an attention window."""
    return gated(config) | rope(config) | context_of_window(config)


def qwen_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Qwen2 or Qwen3.

    Raises:
        ModelError: for another activation, a sliding window, or Llama 3's positions.
    """
    require(not config.use_sliding_window, "a sliding attention window")
    return gated(config) | rope(config, scalings=("default", "linear", "yarn"))


def plain_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a family whose positions are not scaled."""
    return gated(config) | rope(config, scalings=("default",)) | context_of_window(config)


def phi3_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Phi-3 or Phi-4; the context is no longer than its window or original context."""
    if config.rope_parameters.get("rope_type") == "longrope":
        return gated(config) | longrope(config)
    return plain_parameters(config)


def granite_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Granite: a Llama with four multipliers."""
    return plain_parameters(config) | {
        "embedding_scale": float(config.embedding_multiplier),
        "residual_scale": float(config.residual_multiplier),
        "attention.scale": float(config.attention_multiplier),
        "logit_scale": float(config.logits_scaling),
    }


def olmo_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of an OLMo: norms without weights, keys and queries clipped."""
    found = gated_without_epsilon(config) | rope(config, scalings=("default",))
    found["attention.layer_norm_epsilon"] = 1e-5
    if config.clip_qkv is not None:
        found["attention.clamp_kqv"] = float(config.clip_qkv)
    return found


def gated_without_epsilon(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a family with gated SiLU and norms that are no RMS norms."""
    require(config.hidden_act == "silu", f"activation {config.hidden_act!r}")
    return transformer_parameters(config, norm=None)


def olmo3_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of an OLMo 3: windows in most layers, positions scaled in the others only."""
    full, sliding = (config.rope_parameters[f"{kind}_attention"] for kind in ("full", "sliding"))
    require(sliding.get("rope_type", "default") == "default", "scaled rotary positions inside the window")
    return (
        gated(config)
        | rope_of(full, config, ("default", "yarn"))
        | {
            "rope.freq_base_swa": float(sliding["rope_theta"]),
            "attention.sliding_window": int(config.sliding_window),
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
        }
    )


def smollm3_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a SmolLM3: a Llama with layers that have no positions.

    Raises:
        ModelError: if these are others than llama.cpp takes for such.
    """
    expected = [int((layer + 1) % SMOLLM3_PERIOD != 0) for layer in range(config.num_hidden_layers)]
    require(list(config.no_rope_layers) == expected, "layers without positions that are not every fourth")
    return plain_parameters(config)


def relu2_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Llama-like family with squared ReLU and no gate."""
    require(config.hidden_act == "relu2", f"activation {config.hidden_act!r}")
    return transformer_parameters(config) | rope(config, scalings=("default",))


def without(names: dict[str, str], *left_out: str) -> dict[str, str]:
    """Return a table of names without some rows."""
    return {name: stored for name, stored in names.items() if name not in left_out}


LLAMA = Architecture(
    name="llama",
    blocks="model.layers",
    names=NAMES,
    parameters=llama_parameters,
    rows=INTERLEAVED,
    tensors=llama3_factors,
    notes=window_notes,
)
QWEN2 = Architecture(name="qwen2", blocks="model.layers", names=NAMES, parameters=qwen_parameters)
QWEN3 = replace(QWEN2, name="qwen3", names=NAMES | HEAD_NORMS)
PHI3 = Architecture(
    name="phi3",
    blocks="model.layers",
    names=NAMES | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
    parameters=phi3_parameters,
    tensors=longrope_factors,
    notes=window_notes,
)
GRANITE = replace(LLAMA, name="granite", parameters=granite_parameters, tensors=lambda config: {})
OLMO = replace(
    GRANITE,
    name="olmo",
    names=without(NAMES, "input_layernorm", "post_attention_layernorm", "model.norm"),
    parameters=olmo_parameters,
)
OLMO2 = Architecture(
    name="olmo2",
    blocks="model.layers",
    names=NAMES | AFTER | HEAD_NORMS,
    parameters=plain_parameters,
    own_head=True,
)
OLMO3 = replace(OLMO2, parameters=olmo3_parameters)
SMOLLM3 = replace(GRANITE, name="smollm3", parameters=smollm3_parameters)
SEED_OSS = Architecture(
    name="seed_oss",
    blocks="model.layers",
    names=NAMES | {"post_attention_layernorm": "post_attention_norm"},
    parameters=plain_parameters,
)
ERNIE = Architecture(name="ernie4_5", blocks="model.layers", names=NAMES, parameters=plain_parameters)
ARCEE = replace(GRANITE, name="arcee", names=without(NAMES, "mlp.gate_proj"), parameters=relu2_parameters)
GLM4 = Architecture(
    name="glm4",
    blocks="model.layers",
    names=NAMES
    | {
        "mlp.gate_up_proj": "ffn_up",
        "post_self_attn_layernorm": "post_attention_norm",
        "post_mlp_layernorm": "post_ffw_norm",
    },
    parameters=plain_parameters,
)
HUNYUAN = Architecture(
    name="hunyuan-dense",
    blocks="model.layers",
    names=NAMES | {"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"},
    parameters=plain_parameters,
)
