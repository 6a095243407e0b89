"""Tiny random models of several families, saved as Hugging Face folders with a byte tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

END = "<|endoftext|>"
SIZES = {
    "vocab_size": 257,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 256,
    "pad_token_id": None,
}
HEADS = {"num_key_value_heads": 1, "intermediate_size": 32}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, **HEADS),
    "gpt2": GPT2Config(
        vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=256
    ),
    "gptj": GPTJConfig(
        vocab_size=257,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=64,
        rotary_dim=4,
        bos_token_id=None,
        eos_token_id=256,
    ),
    "gpt_neo": GPTNeoConfig(
        vocab_size=257,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        max_position_embeddings=64,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        bos_token_id=None,
        eos_token_id=256,
    ),
    "opt": OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16),
    "qwen2": Qwen2Config(**SIZES, **HEADS),
    "gemma": GemmaConfig(**SIZES, **HEADS, head_dim=8),
}
Save = Callable[..., Path]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(family: str = "llama", *, dtype: torch.dtype = torch.float32, **options: object) -> Path:
        generator = torch.random.get_rng_state()
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family])).to(dtype)
        torch.random.set_rng_state(generator)
        folder = tmp_path / family
        model.save_pretrained(folder, **options)
        byte_tokenizer().save_pretrained(folder)
        return folder

    return save
