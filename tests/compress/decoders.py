"""Random decoders of every family in the table of structured pruning, with weights large enough to have opinions."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from edgetune.compress.structured.families import FAMILIES

SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
    "attn_implementation": "eager",
}
OWN = {
    "opt": {"ffn_dim": 40, "word_embed_proj_dim": 48, "init_std": 0.2, "activation_function": "gelu"},
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 8, "n_inner": 40, "n_positions": 64},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16},
    "qwen3": {"head_dim": 16},
    "phi": {"head_dim": 8},
    "nemotron": {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "ernie4_5": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 10},
}
GENERIC = {name for name in FAMILIES if name != "gpt2"}


def decoder(kind: str, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model; biases and norms are random too, so that a misplaced one shows."""
    sizes = {name: value for name, value in SIZES.items() if kind in GENERIC or "size" not in name[:8]}
    if kind == "gpt2":
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            sizes.pop(name, None)
        sizes.pop("intermediate_size", None)
        sizes.pop("max_position_embeddings", None)
    if kind == "opt":
        sizes = {k: v for k, v in sizes.items() if k not in ("intermediate_size", "num_key_value_heads")}
    config = AutoConfig.for_model(kind, **(sizes | OWN.get(kind, {}) | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim == 1:
                    weight.copy_(0.5 * torch.rand(weight.shape) + 0.5)
    return model.eval().requires_grad_(False)
