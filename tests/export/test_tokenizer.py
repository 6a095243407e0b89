from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from toys import TEMPLATE, TEXTS, byte_level, tiny_llama
from transformers import PreTrainedTokenizerFast

from edgetune.core import pretokenizer
from edgetune.core.errors import ModelError
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.parity import vocabulary_in_llama_cpp
from edgetune.export.plan import plan_export
from edgetune.export.speech import Speech, speech_of
from edgetune.export.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, Vocabulary, vocabulary
from edgetune.models.backbone import load_backbone


def split(*regexes: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(regex), "isolated") for regex in regexes),
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
    "tekken": lambda: byte_level(split(pretokenizer._TEKKEN), ignore_merges=True),
    "seed-coder": lambda: byte_level(split(pretokenizer._SEED)),
    "deepseek-v3": lambda: byte_level(split(*pretokenizer._DEEPSEEK3)),
    "bloom": lambda: byte_level(split(pretokenizer._BLOOM)),
    "falcon": lambda: byte_level(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Punctuation("contiguous"),
                gpt2_words(),
                pre_tokenizers.Digits(individual_digits=False),
                pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    ),
}


def words_of(
    tokenizer: PreTrainedTokenizerFast, size: int = 384, ends: Sequence[int] = (1,), **options: Any
) -> Vocabulary:
    return vocabulary(tokenizer, size, speech_of(tokenizer, ends), **options)


@pytest.mark.parametrize("pre", sorted(KINDS))
def test_every_known_pre_tokenizer_gives_equal_ids(pre: str, tmp_path: Path) -> None:
    tokenizer = KINDS[pre]()
    assert words_of(tokenizer).pre == pre
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})
    with LlamaCpp(path) as llama:
        for text in TEXTS:
            assert llama.tokenise(text) == tokenizer(text).input_ids, text
    again = load_backbone(path).tokenizer
    assert words_of(again).pre == pre
    for text in TEXTS:
        assert again(text).input_ids == tokenizer(text).input_ids, text


@pytest.mark.parametrize("name", sorted(pretokenizer.CANONICAL))
def test_llama_cpp_splits_alike_under_every_name_that_is_taken_for_the_same(name: str) -> None:
    tokenizer = KINDS[pretokenizer.CANONICAL[name]]()
    plan = plan_export(tiny_llama(), tokenizer, speech_of(tokenizer, (1,)), grids={})
    with vocabulary_in_llama_cpp(replace(plan, vocabulary=replace(plan.vocabulary, pre=name))) as llama:
        for text in TEXTS:
            assert llama.tokenise(text) == tokenizer(text).input_ids, text


def test_control_characters_in_a_regex_may_stand_for_themselves() -> None:
    written = pretokenizer._LLAMA3.replace(r"\r", "\r").replace(r"\n", "\n")
    assert written != pretokenizer._LLAMA3
    assert words_of(byte_level(split(written), ignore_merges=True)).pre == "llama-bpe"


def adding_a_start(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    tokenizer.chat_template = template
    return tokenizer


def test_a_start_token_is_added_once(tmp_path: Path) -> None:
    tokenizer = adding_a_start()
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


def test_a_start_token_that_training_does_not_see_is_not_added(tmp_path: Path) -> None:
    tokenizer = adding_a_start(TEMPLATE.replace("{{ bos_token }}", ""))
    words = words_of(tokenizer)
    assert words.flags["add_bos_token"] is False
    assert any("start token" in note for note in words.notes)
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})
    messages = [{"role": "user", "content": "hello"}]
    with LlamaCpp(path) as llama:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert llama.tokenise(llama.render(messages)) == tokenizer(text, add_special_tokens=False).input_ids


def test_an_end_token_is_never_put_behind_a_prompt(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|end|>", special_tokens=[("<|end|>", 1)]
    )
    assert tokenizer("hello").input_ids[-1] == 1
    with LlamaCpp(write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})) as llama:
        assert 1 not in llama.tokenise("hello")


def test_a_sentencepiece_like_tokenizer_gives_equal_ids(pretrained: Any, tmp_path: Path) -> None:
    model, tokenizer = pretrained("stories260K")
    words = words_of(tokenizer, 512, ends=(2,))
    assert (words.model, words.flags["add_space_prefix"], words.flags["add_bos_token"]) == (
        "llama",
        True,
        True,
    )
    assert [words.types[i] for i in (0, 1, 3, 300)] == [UNKNOWN, CONTROL, BYTE, NORMAL]
    with LlamaCpp(write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})) as llama:
        for text in [*TEXTS, "Once upon a time, there was a little girl.", "</s>after"]:
            assert llama.tokenise(text) == tokenizer(text).input_ids, text


INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def with_a_space_at_the_very_beginning(pretrained: Any) -> tuple[Any, PreTrainedTokenizerFast]:
    model, tokenizer = pretrained("stories260K")
    backend = tokenizer.backend_tokenizer
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="\u2581", prepend_scheme="first", split=False
    )
    return model, PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_a_space_at_the_very_beginning_only_agrees_in_a_chat(pretrained: Any, tmp_path: Path) -> None:
    model, tokenizer = with_a_space_at_the_very_beginning(pretrained)
    tokenizer.chat_template = INSTRUCT
    words = words_of(tokenizer, 512, ends=(2,))
    assert words.flags["add_space_prefix"] is False
    assert any("add_space_prefix" in note for note in words.notes)
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "more"},
    ]
    with LlamaCpp(write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})) as llama:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert llama.tokenise(llama.render(messages)) == tokenizer(text, add_special_tokens=False).input_ids


def test_a_space_at_the_very_beginning_only_agrees_in_plain_text(pretrained: Any, tmp_path: Path) -> None:
    model, tokenizer = with_a_space_at_the_very_beginning(pretrained)
    assert words_of(tokenizer, 512, ends=(2,)).flags["add_space_prefix"] is True
    with LlamaCpp(write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})) as llama:
        for text in ("Once upon a time", "two", "end</s>"):
            assert llama.tokenise(text) == tokenizer(text).input_ids, text


def test_missing_tokens_are_unused_ones() -> None:
    words = words_of(byte_level(), 400)
    assert words.types[384:] == (UNUSED,) * 16
    assert words.types[:4] == (CONTROL,) * 4


def test_fillers_are_named_as_no_other_token_is(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["[PAD390]", "[PAD391]", "[PAD391.1]", "[PAD386]"]}
    )
    words = words_of(tokenizer, 400)
    assert len(set(words.tokens)) == 400
    assert words.tokens[384:388] == ("[PAD390]", "[PAD391]", "[PAD391.1]", "[PAD386]")
    assert words.tokens[390:393] == ("[PAD390.1]", "[PAD391.2]", "[PAD392]")
    path = write_gguf(tmp_path / "m.gguf", tiny_llama(vocab_size=400), tokenizer, quantised={})
    with LlamaCpp(path) as llama:
        for text in ("[PAD390]", "[PAD391.1] and [PAD386]", "[PAD392]"):
            assert llama.tokenise(text) == tokenizer(text).input_ids, text


def test_tokens_without_a_row_are_left_out(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 384
    words = words_of(tokenizer, 384)
    assert "[PAD]" not in words.tokens
    assert "padding" not in words.ids
    assert any("'[PAD]'" in note for note in words.notes)
    with LlamaCpp(write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})) as llama:
        assert llama.tokenise("hello world") == tokenizer("hello world").input_ids


def test_merges_into_tokens_without_a_row_are_left_out(tmp_path: Path) -> None:
    tokenizer = byte_level()
    words = words_of(tokenizer, 380)
    assert len(words.merges or ()) == len(words_of(tokenizer).merges or ()) - 4
    with LlamaCpp(
        write_gguf(tmp_path / "m.gguf", tiny_llama(vocab_size=380), tokenizer, quantised={})
    ) as llama:
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            if max(ids, default=0) < 380:
                assert llama.tokenise(text) == ids, text


def test_an_unknown_pre_tokenizer_is_refused_unless_named() -> None:
    tokenizer = byte_level(split(r"\d+|\D+"))
    with pytest.raises(pretokenizer.UnknownPreTokenizerError, match="none of those known"):
        words_of(tokenizer)
    assert words_of(tokenizer, pre_tokenizer="qwen2").pre == "qwen2"
    with pytest.raises(ModelError, match=r"choose from .*gpt-2"):
        words_of(tokenizer, pre_tokenizer="nonsense")


def test_what_llama_cpp_cannot_follow_is_refused() -> None:
    lower = byte_level()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="normalizer Lowercase"):
        words_of(lower)
    endless = byte_level()
    endless.eos_token = None
    with pytest.raises(ModelError, match="no token ends an answer"):
        words_of(endless, ends=())
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ModelError, match="type WordLevel"):
        words_of(words)


def test_composing_characters_is_known_of_the_tokenizer() -> None:
    tokenizer = byte_level()
    assert words_of(tokenizer).composes is False
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert words_of(tokenizer).composes is True


@pytest.mark.parametrize(
    ("ends", "template", "expected"),
    [
        ((1,), TEMPLATE, {"eos": 1}),
        ((2, 1), TEMPLATE, {"eos": 2, "eot": 1}),
        ((1, 2), TEMPLATE, {"eos": 1, "eot": 2}),
        ((2, 3, 200), TEMPLATE, {"eos": 2, "eot": 3, "eom": 200, "fim_pad": 1}),
        # A template that speaks of the tokenizer's own end must find it there.
        ((2,), TEMPLATE + "{{ eos_token }}", {"eos": 1, "eot": 2}),
        ((2,), "{% generation %}" + TEMPLATE, {"eos": 2, "eot": 1}),
    ],
)
def test_every_end_has_a_role(ends: tuple[int, ...], template: str, expected: dict[str, int]) -> None:
    speech = Speech("a", (5,), ends, template)
    ids = vocabulary(byte_level(), 384, speech).ids
    assert {role: index for role, index in ids.items() if role != "bos"} == expected
    assert ids["bos"] == 0


def test_llama_cpp_stops_at_every_end_whatever_it_is_called(tmp_path: Path) -> None:
    tokenizer, model = byte_level(), tiny_llama()
    names = [tokenizer.convert_ids_to_tokens(index) for index in (1, 3, 150, 200, 300, 310)]
    assert len(set(names)) == 6
    model.generation_config.eos_token_id = [3, 150, 200, 300, 310]
    path = write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})
    with LlamaCpp(path) as llama:
        for index in (1, 3, 150, 200, 300, 310):
            assert llama.ends_at(index), index
        for index in (0, 2, 151, 299):
            assert not llama.ends_at(index), index
    model.generation_config.eos_token_id = list(range(2, 9))
    with pytest.raises(ModelError, match="room for 6"):
        write_gguf(tmp_path / "m.gguf", model, tokenizer, quantised={})
