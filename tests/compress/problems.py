"""Problems with known structure: correlated inputs and tiny decoders of six families."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

Problem = tuple[torch.Tensor, torch.Tensor]


def problem(rows: int, columns: int, seed: int = 0, tokens: int = 512) -> Problem:
    """Weights float32 [rows, columns] and the Hessian of correlated inputs, float32 [columns, columns]."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(tokens, columns, generator=generator) @ (mixing + 0.3 * torch.eye(columns))
    weights = torch.randn(rows, columns, generator=generator)
    return weights, 2 / tokens * inputs.T @ inputs


def damped(hessian: torch.Tensor, repaired: torch.Tensor, damping: float) -> torch.Tensor:
    """H + damping * mean(diag H) * I."""
    return hessian - torch.diag(hessian.diagonal()) + torch.diag(repaired + damping * repaired.mean())


def relative_error(weights: torch.Tensor, solved: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr(dW H dW^T) / tr(W H W^T) in float64."""
    w, d, h = weights.double(), (solved - weights).double(), hessian.double()
    return float(torch.trace(d @ h @ d.T) / torch.trace(w @ h @ w.T))


_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=True)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_SIZES, head_dim=16, pad_token_id=0)),
    # Blocks differ: the first two see a sliding window and local rotary embeddings, the third everything.
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **{**_SIZES, "num_hidden_layers": 3},
            head_dim=16,
            sliding_window=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            pad_token_id=0,
        )
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            hidden_size=64,
            ffn_dim=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=50,
            max_position_embeddings=64,
            word_embed_proj_dim=64,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=64, n_layer=2, n_head=4, n_inner=96, vocab_size=50, n_positions=64)
    ),
}


def tiny(family: str, seed: int = 0) -> PreTrainedModel:
    """A random decoder with weights large enough that attention and activations do something."""
    torch.manual_seed(seed)
    model = FAMILIES[family]().float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model
