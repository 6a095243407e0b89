from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from toys import TEXTS, byte_level, tiny_llama
from transformers import PreTrainedTokenizerFast

from edgetune.core.errors import ModelError
from edgetune.export import pretokenizer
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, vocabulary


def split(regex: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def gpt2_words() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "gpt-2": byte_level,
    "smollm": lambda: byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2_words()])
    ),
    "llama-bpe": lambda: byte_level(split(pretokenizer._LLAMA3), ignore_merges=True),
    "smaug-bpe": lambda: byte_level(split(pretokenizer._LLAMA3)),
    "qwen2": lambda: byte_level(split(pretokenizer._QWEN2)),
    "gpt-4o": lambda: byte_level(split(pretokenizer._GPT4O)),
}


@pytest.mark.parametrize("pre", sorted(KINDS))
def test_every_known_pre_tokenizer_gives_equal_ids(pre: str, tmp_path: Path) -> None:
    tokenizer = KINDS[pre]()
    assert vocabulary(tokenizer, 384).pre == pre
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})
    with LlamaCpp(path) as llama:
        for text in TEXTS:
            assert llama.tokenise(text) == tokenizer(text).input_ids, text


def test_a_start_token_is_added_once(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})
    messages = [{"role": "user", "content": "hello"}]
    with LlamaCpp(path) as llama:
        assert llama.metadata["tokenizer.ggml.add_bos_token"] is True
        assert llama.tokenise("hello")[0] == 0
        assert llama.tokenise("hello", special=False)[0] != 0
        rendered = llama.tokenise(llama.render(messages))
        assert rendered.count(0) == 1, "the template's start token and the automatic one must not add up"
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == tokenizer(text, add_special_tokens=False).input_ids


def test_a_sentencepiece_like_tokenizer_gives_equal_ids(pretrained: Any, tmp_path: Path) -> None:
    model, tokenizer = pretrained("stories260K")
    words = vocabulary(tokenizer, 512)
    assert (words.model, words.flags["add_space_prefix"], words.flags["add_bos_token"]) == (
        "llama",
        True,
        True,
    )
    assert [words.types[i] for i in (0, 1, 3, 300)] == [UNKNOWN, CONTROL, BYTE, NORMAL]
    with LlamaCpp(write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})) as llama:
        for text in [*TEXTS, "Once upon a time, there was a little girl.", "</s>after"]:
            assert llama.tokenise(text) == tokenizer(text).input_ids, text


def test_missing_tokens_are_unused_ones() -> None:
    words = vocabulary(byte_level(), 400)
    assert words.types[384:] == [UNUSED] * 16
    assert words.types[:4] == [CONTROL] * 4
    with pytest.raises(ModelError, match="resize the embeddings"):
        vocabulary(byte_level(), 100)


def test_an_unknown_pre_tokenizer_is_refused_unless_named() -> None:
    tokenizer = byte_level(split(r"\d+|\D+"))
    with pytest.raises(ModelError, match=r"pre_tokenizer=.*qwen2"):
        vocabulary(tokenizer, 384)
    assert vocabulary(tokenizer, 384, pre_tokenizer="qwen2").pre == "qwen2"
    with pytest.raises(ModelError, match="choose from gpt-2"):
        vocabulary(tokenizer, 384, pre_tokenizer="nonsense")


def test_what_llama_cpp_cannot_follow_is_refused() -> None:
    lower = byte_level()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="normalizer Lowercase"):
        vocabulary(lower, 384)
    endless = byte_level()
    endless.eos_token = None
    with pytest.raises(ModelError, match="no answer would ever end"):
        vocabulary(endless, 384)
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ModelError, match="type WordLevel"):
        vocabulary(words, 384)


def test_further_end_tokens_of_the_model_are_stored() -> None:
    assert vocabulary(byte_level(), 384, stop_ids=(1, 2)).ids == {"bos": 0, "eos": 1, "eot": 2}
