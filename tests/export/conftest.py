"""Pretrained models of the shared data, a tokenizer and token ids for the export tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toys import byte_level
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast


@pytest.fixture
def pretrained(shared_data: Path) -> Callable[[str], tuple[PreTrainedModel, PreTrainedTokenizerFast]]:
    def load(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        folder = shared_data / "models" / name
        if not folder.is_dir():
            pytest.skip(f"no {folder}: set EDGETUNE_DATA to the folder of the shared data")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return model, AutoTokenizer.from_pretrained(folder)

    return load


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture
def ids() -> list[int]:
    return torch.randint(4, 384, (40,), generator=torch.Generator().manual_seed(1)).tolist()
