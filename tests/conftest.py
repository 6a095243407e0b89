"""Tiny random models of five families, a tokenizer for them, and the folder of shared data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.cache import cache_folder

os.environ["EDGETUNE_DEVICE"] = "cpu"  # digests and figures of the tests are those of the CPU, GPU or not
USERS_MODELS = cache_folder("models")  # before tests get a cache of their own
TinyModel = Callable[..., Any]
END = "<|endoftext|>"
FAMILIES = ("llama", "gpt2", "opt", "qwen2", "gemma")
VOCABULARY = 100


def _config(kind: str, hidden: int, vocabulary: int) -> Any:
    from transformers import GemmaConfig, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": 2} | ends
    heads = {"num_attention_heads": 2, "max_position_embeddings": 128}
    gated = heads | {"num_key_value_heads": 1, "intermediate_size": 2 * hidden}
    return {
        "llama": lambda: LlamaConfig(**sizes, **gated),
        "qwen2": lambda: Qwen2Config(**sizes, **gated, tie_word_embeddings=True),
        "gemma": lambda: GemmaConfig(**sizes, **gated, head_dim=hidden // 2),
        "opt": lambda: OPTConfig(**sizes, **heads, ffn_dim=2 * hidden, word_embed_proj_dim=hidden),
        "gpt2": lambda: GPT2Config(
            vocab_size=vocabulary, n_embd=hidden, n_layer=2, n_head=2, n_positions=128, **ends
        ),
    }[kind]()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """Make a model of a family, in evaluation mode, without gradients; the same weights every time."""

    def make(kind: str = "llama", *, hidden: int = 32, vocabulary: int = VOCABULARY, seed: int = 0) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(_config(kind, hidden, vocabulary))
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE of printable ASCII, 98 tokens; 0 is the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [END, "Ġ", "Ċ", *map(chr, range(33, 127)), "th"]
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, [("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


@pytest.fixture
def save_tiny(tmp_path: Path, tiny_model: TinyModel, tiny_tokenizer: Any) -> Callable[..., Path]:
    """Write a tiny model with its tokenizer as a Hugging Face folder."""

    def save(kind: str = "llama", *, seed: int = 0, name: str | None = None) -> Path:
        from edgetune.models.quiet import quiet

        folder = tmp_path / (name or f"{kind}-{seed}")
        with quiet():
            tiny_model(kind, seed=seed).save_pretrained(folder)
            tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the shared data sets and models."""
    root = Path(os.environ.get("EDGETUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no shared data at {root}: set EDGETUNE_DATA to their folder")
    return root


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The file of the real model, in the user's cache."""
    from edgetune.models.shelf import SHELF

    path = USERS_MODELS / SHELF["smollm2"].path.name
    if not path.is_file():
        pytest.skip(f"{path} is not here: make model fetches it")
    return path
