"""Tiny random causal language models with a byte tokenizer."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MiniMaxConfig,
    OpenAIGPTConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RecurrentGemmaConfig,
    RwkvConfig,
)

END = 256
SIZES = {
    "vocab_size": 257,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": None,
}
WITHOUT_CACHE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": None,
}
HEADS = {"num_key_value_heads": 1, "intermediate_size": 32}


def llama() -> LlamaConfig:
    return LlamaConfig(**SIZES, **HEADS)


def gpt2() -> GPT2Config:
    return GPT2Config(
        vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=END
    )


def opt() -> OPTConfig:
    return OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16)


def qwen2() -> Qwen2Config:
    return Qwen2Config(**SIZES, **HEADS)


def gemma() -> GemmaConfig:
    return GemmaConfig(**SIZES, **HEADS, head_dim=8)


@pytest.fixture(params=[llama, gpt2, opt, qwen2, gemma], ids=lambda make: make.__name__)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return varied(request.param())


def mamba() -> MambaConfig:
    return MambaConfig(vocab_size=257, state_size=4, **WITHOUT_CACHE)


def mamba2() -> Mamba2Config:
    return Mamba2Config(vocab_size=257, state_size=4, num_heads=4, head_dim=8, n_groups=1, **WITHOUT_CACHE)


def rwkv() -> RwkvConfig:
    return RwkvConfig(vocab_size=257, attention_hidden_size=16, context_length=64, **WITHOUT_CACHE)


def recurrent_gemma() -> RecurrentGemmaConfig:
    more = {"lru_width": 16, "head_dim": 8, "attention_window_size": 16, "num_hidden_layers": 3}
    return RecurrentGemmaConfig(**SIZES | HEADS | more)


def gpt1() -> OpenAIGPTConfig:
    return OpenAIGPTConfig(vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=64)


def minimax() -> MiniMaxConfig:
    kinds = ["linear_attention", "full_attention"]
    return MiniMaxConfig(**SIZES, **HEADS, num_local_experts=2, head_dim=8, layer_types=kinds)


@pytest.fixture(params=[mamba, mamba2, rwkv, recurrent_gemma, gpt1, minimax], ids=lambda make: make.__name__)
def odd_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A model without a key-value cache, or one that sums over padding."""
    return varied(request.param())


def varied(config: PreTrainedConfig) -> PreTrainedModel:
    """Make a model whose answers vary: its weights are larger than an untrained model's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for weight in made.parameters():
                if weight.ndim == 2:
                    weight.normal_(std=0.3)
    return made


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
