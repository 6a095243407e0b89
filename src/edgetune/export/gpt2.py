"""GPT-2: learned positions, layer norms with biases, fused attention matrices stored transposed."""

from __future__ import annotations

from edgetune.export.layout import Architecture, Config, Value, require


def gpt2_parameters(config: Config) -> dict[str, Value]:
    """Return the hyper-parameters of a GPT-2.

    Raises:
        ModelError: for another activation than tanh GELU, or attention scaled by layer.
    """
    require(
        config.activation_function in ("gelu_new", "gelu_pytorch_tanh"), f"{config.activation_function!r}"
    )
    require(config.scale_attn_weights, "unscaled attention")
    require(not config.scale_attn_by_inverse_layer_idx, "attention scaled by layer")
    return {
        "context_length": config.n_positions,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": config.n_inner or 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.layer_norm_epsilon": float(config.layer_norm_epsilon),
        "vocab_size": config.vocab_size,
    }


GPT2 = Architecture(
    name="gpt2",
    blocks="transformer.h",
    names={
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    parameters=gpt2_parameters,
    exact=frozenset({"transformer.wpe"}),
    transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
)
