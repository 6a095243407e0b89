"""A tokenizer small enough to know by heart: one token a byte, then the special tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

MakeTokenizer = Callable[..., PreTrainedTokenizerBase]


@pytest.fixture
def byte_tokenizer() -> MakeTokenizer:
    def make(*, front: bool = False, merges: tuple[tuple[str, str], ...] = (), **specials: Any) -> Any:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {letter: index for index, letter in enumerate([*letters, *map("".join, merges)])}
        tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)
        if front:
            bos = specials["bos_token"]
            made.backend_tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, made.bos_token_id)]
            )
        return made

    return make
