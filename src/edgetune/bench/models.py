"""Random Llamas of given shapes, to measure steps and catch-up on."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from edgetune.core.batch import Batch


def random_llama(
    hidden: int, inner: int, layers: int, heads: int, vocabulary: int, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Return a Llama with random weights of deviation 0.02, tied embeddings, in evaluation mode.

    Args:
        hidden: width.
        inner: width of the feed-forward part.
        layers: decoder blocks.
        heads: attention heads; a quarter as many (at least one) for keys and values.
        vocabulary: tokens.
        dtype: type of the weights.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        tie_word_embeddings=True,
        dtype=dtype,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            model: PreTrainedModel = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)
    model.train(False)
    return model


def random_batch(size: int, tokens: int, vocabulary: int) -> Batch:
    """Return random ids whose every token carries loss."""
    ids = torch.randint(vocabulary, (size, tokens), generator=torch.Generator().manual_seed(1))
    return Batch(ids, torch.ones_like(ids), ids)
