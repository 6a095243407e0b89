"""Gemma 1, 2 and 3 (text): norms that multiply by `1 + w`, scaled embeddings, tied head, gated GELU."""

from __future__ import annotations

from edgetune.core.gguf_names import HEAD_NORMS, NAMES
from edgetune.export.layout import Architecture, Config, Value, head_dim, require, transformer_parameters
from edgetune.export.rope import rope

SANDWICH_NAMES = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GEMMA2_27B_LAYERS = 46
GEMMA3_27B_LAYERS = 62
"""llama.cpp tells the 27B models by their number of layers and scales their attention differently."""


def shared_parameters(config: Config) -> dict[str, Value]:
    """Return what all Gemmas share.

    Raises:
        ModelError: for another activation than tanh GELU, or a head of its own.
    """
    # Gemma 1 calls it `hidden_act`; configurations of either name are in use.
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    require(activation == "gelu_pytorch_tanh", f"activation {activation!r}")
    require(config.tie_word_embeddings, "an output head that is not tied to the embeddings")
    return transformer_parameters(config)


def gemma_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Gemma 1."""
    return shared_parameters(config) | rope(config)


def _windows(config: Config, period: int, odd_layers: int) -> dict[str, Value]:
    """Return the window's size after checking that the layers alternate as llama.cpp assumes."""
    expected = [
        "full_attention" if (i + 1) % period == 0 else "sliding_attention"
        for i in range(len(config.layer_types))
    ]
    require(config.layer_types == expected, f"sliding windows that do not follow a period of {period}")
    require(config.num_hidden_layers != odd_layers, f"attention scaling of {odd_layers} layers")
    require(
        config.query_pre_attn_scalar == head_dim(config), "an attention scale other than 1/sqrt(head_dim)"
    )
    return {"attention.sliding_window": config.sliding_window}


def gemma2_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a Gemma 2."""
    return (
        shared_parameters(config)
        | rope(config)
        | _windows(config, 2, GEMMA2_27B_LAYERS)
        | {
            "attn_logit_softcapping": float(config.attn_logit_softcapping),
            "final_logit_softcapping": float(config.final_logit_softcapping),
        }
    )


def gemma3_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of the text model of a Gemma 3."""
    full, sliding = config.rope_parameters["full_attention"], config.rope_parameters["sliding_attention"]
    require(sliding.get("rope_type", "default") == "default", "scaled rotary positions inside the window")
    require(
        full.get("rope_type", "default") in ("default", "linear"), f"rope scaling {full.get('rope_type')!r}"
    )
    require(config.attn_logit_softcapping is None, "soft-capped attention")
    require(config.final_logit_softcapping is None, "soft-capped logits")
    found: dict[str, Value] = {
        "rope.freq_base": float(full["rope_theta"]),
        "rope.freq_base_swa": float(sliding["rope_theta"]),
    }
    if full.get("rope_type") == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(full["factor"])}
    return shared_parameters(config) | _windows(config, 6, GEMMA3_27B_LAYERS) | found


GEMMA = Architecture(
    name="gemma", blocks="model.layers", names=NAMES, parameters=gemma_parameters, norm_offset=1.0
)
GEMMA2 = Architecture(
    name="gemma2", blocks="model.layers", names=SANDWICH_NAMES, parameters=gemma2_parameters, norm_offset=1.0
)
GEMMA3 = Architecture(
    name="gemma3",
    blocks="model.layers",
    names=SANDWICH_NAMES | HEAD_NORMS,
    parameters=gemma3_parameters,
    norm_offset=1.0,
)
