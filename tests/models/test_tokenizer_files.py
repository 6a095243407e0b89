"""Tokenizers of folders against the tokenizers library reading the folder's own file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from edgetune.core.errors import ModelError
from edgetune.models.quiet import quiet
from edgetune.models.tokenizer import load_tokenizer
from edgetune.models.trial import PROBES

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}]+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def bytes_split_by(expression: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


PRE_TOKENIZERS = {
    "words": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "words after a space": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "single digits": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "digits by threes": bytes_split_by(SPLIT),
    "digits one by one": bytes_split_by(SPLIT.replace("{1,3}", "")),
    "cased words": bytes_split_by(CASED),
}
CLASSES = (
    "GPT2Tokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "GemmaTokenizer",
    "GPTNeoXTokenizerFast",
    "Unheard",
)
TEXTS = (
    *PROBES,
    "In 2023 they sold 650841823 units, I'M he's\n\n\n  x  y",
    "<|end|>a<|begin|> <|end|>",
    "a  <|pad|>\n",
)
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Save a small trained byte-level tokenizer as a folder of a Llama model."""

    def make(pre: str = "words", *, configured: dict[str, Any] | None = None, **parts: Any) -> Path:
        tokenizer = Tokenizer(models.BPE(ignore_merges=parts.pop("ignore_merges", False)))
        tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            show_progress=False,
            special_tokens=["<|begin|>", "<|end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        tokenizer.train_from_iterator(
            [*PROBES, "In 2023 and 2024 they sold 650841823 I'M he'll\n\n  x"] * 9, trainer
        )
        tokenizer.add_tokens(
            [AddedToken("<|pad|>", lstrip=True, rstrip=True, special=True, normalized=False)]
        )
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        saved = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>",
            chat_template="{{ messages }}", model_max_length=77, padding_side="left",
        )  # fmt: skip
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        saved.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 500}))
        (folder / "chat_template.jinja").unlink()
        configure(folder, **{"chat_template": "{{ messages }}", **(configured or {})})
        return folder

    return make


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "tokenizer_config.json"
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change(folder: Path, spoil: Callable[[dict[str, Any]], object]) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    spoil(content)
    file.write_text(json.dumps(content))


def load(folder: Path, rows: int = 500) -> Any:
    with quiet():
        return load_tokenizer(folder, rows)


def check(tokenizer: Any, folder: Path) -> None:
    truth = Tokenizer.from_file(str(folder / "tokenizer.json"))
    truth.no_truncation()
    truth.no_padding()
    for text in TEXTS:
        for special in (True, False):
            expected = truth.encode(text, add_special_tokens=special).ids
            assert tokenizer(text, add_special_tokens=special).input_ids == expected, text
        ids = truth.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == truth.decode(ids, skip_special_tokens=False)
        assert tokenizer.decode(ids, skip_special_tokens=True) == truth.decode(ids)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
@pytest.mark.parametrize("named", CLASSES)
def test_ids_are_those_of_the_file_whatever_class_the_configuration_names(
    make: Make, pre: str, named: str
) -> None:
    folder = make(pre, configured={"tokenizer_class": named})
    tokenizer = load(folder)
    check(tokenizer, folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|begin|>",
        "<|end|>",
        "<|pad|>",
    )
    assert set(tokenizer.all_special_tokens) == {"<|begin|>", "<|end|>", "<|pad|>"}
    assert (tokenizer.chat_template, tokenizer.model_max_length, tokenizer.padding_side) == (
        "{{ messages }}",
        77,
        "left",
    )
    assert len(tokenizer) == Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def test_it_is_so_after_saving_and_loading_again_here_and_in_transformers(make: Make, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make("single digits", configured={"tokenizer_class": "GPT2Tokenizer"})
    load(folder).save_pretrained(tmp_path / "again")
    shutil.copy(folder / "config.json", tmp_path / "again")
    check(load(tmp_path / "again"), folder)
    with quiet():
        check(AutoTokenizer.from_pretrained(tmp_path / "again"), folder)


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "Qwen2Tokenizer", "Unheard"])
@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": normalizers.Lowercase()},
        {"normalizer": normalizers.Sequence([normalizers.NFC(), normalizers.Replace("x", "y")])},
        {
            "post_processor": processors.TemplateProcessing(
                single="<|begin|> $A <|end|>", special_tokens=[("<|begin|>", 0), ("<|end|>", 1)]
            )
        },
        {"ignore_merges": True},
        {"decoder": decoders.Sequence([decoders.ByteLevel(), decoders.Replace("a", "b")])},
    ],
    ids=["lower case", "normalizers", "post-processor", "ignore merges", "decoder"],
)
def test_every_part_of_the_file_counts(make: Make, named: str, parts: dict[str, Any]) -> None:
    folder = make("words", configured={"tokenizer_class": named}, **parts)
    check(load(folder), folder)


def test_flags_of_added_tokens_are_those_of_the_file(make: Make) -> None:
    tokens = {
        "401": {"content": "<|pad|>", "lstrip": False, "rstrip": False, "normalized": True, "special": True},
    }
    folder = make("words", configured={"added_tokens_decoder": tokens})
    check(load(folder), folder)


def test_truncation_and_padding_in_the_file_do_not_cut_texts(make: Make) -> None:
    folder = make("words")
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    change(folder, lambda content: content.update(truncation=truncation))
    assert len(load(folder)("a b c d e f").input_ids) >= 6
    check(load(folder), folder)


def test_a_token_of_the_configuration_that_the_file_lacks_is_added(make: Make) -> None:
    for named in ("GPT2Tokenizer", "Unheard"):
        folder = make("single digits", configured={"tokenizer_class": named, "unk_token": "<|unk|>"})
        tokenizer = load(folder)
        assert tokenizer.unk_token == "<|unk|>"
        assert tokenizer.convert_tokens_to_ids("<|unk|>") == len(tokenizer) - 1
        check(tokenizer, folder)


def test_a_word_of_the_file_may_be_named_as_a_token(make: Make) -> None:
    for named in ("GPT2Tokenizer", "Unheard"):
        folder = make("single digits", configured={"tokenizer_class": named, "eos_token": "old"})
        tokenizer = load(folder)
        assert (
            tokenizer("they sold").input_ids[-1]
            == tokenizer.eos_token_id
            == tokenizer.convert_tokens_to_ids("old")
        )


def test_a_folder_without_the_file_is_left_to_transformers(make: Make) -> None:
    folder = make("words")
    content = json.loads((folder / "tokenizer.json").read_text())
    expected = load(folder)("the 2023 units").input_ids
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "merges.txt").write_text("\n".join(map(" ".join, content["model"]["merges"])))
    (folder / "tokenizer.json").unlink()
    configure(folder, tokenizer_class="GPT2Tokenizer", add_prefix_space=False)
    assert load(folder)("the 2023 units").input_ids == expected


def test_added_tokens_beyond_the_rows_are_taken_out(make: Make) -> None:
    folder = make("words")
    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() - 1
    tokenizer = load(folder, rows)
    assert (tokenizer.pad_token, len(tokenizer)) == (None, rows)
    assert max(tokenizer("a <|pad|> b").input_ids) < rows
    assert tokenizer.decode(tokenizer("a <|pad|> b").input_ids) == "a <|pad|> b"
    assert (tokenizer.eos_token, tokenizer.chat_template) == ("<|end|>", "{{ messages }}")
    assert len(load(folder, rows + 1)) == rows + 1
    assert len(load(folder, rows + 100)) == rows + 1


@pytest.mark.parametrize(
    ("configured", "lost"),
    [
        ({"chat_template": "{{ messages }}<|pad|>"}, "'<|pad|>'"),
        ({"eos_token": "<|pad|>"}, "'<|pad|>'"),
        ({"bos_token": "<|pad|>"}, "'<|pad|>'"),
    ],
)
def test_a_needed_token_beyond_the_rows_is_refused(make: Make, configured: dict[str, Any], lost: str) -> None:
    folder = make("words", configured=configured)
    rows = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() - 1
    with pytest.raises(ModelError, match=rf"{rows} rows do not reach: {lost}".replace("|", r"\|")):
        load(folder, rows)
    with pytest.raises(ModelError, match="do not reach"):
        load(folder, 300)


UNKNOWN_IN_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<|nowhere|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [],
    "special_tokens": {},
}
DOUBLING = {
    "type": "Sequence",
    "normalizers": [{"type": "Replace", "pattern": {"String": "e"}, "content": "ee"}] * 60,
}
HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "panics": lambda content: content.update(post_processor=UNKNOWN_IN_TEMPLATE),
    "grows": lambda content: content.update(normalizer=DOUBLING),
    "another kind": lambda content: content["model"].update(type="Riddle"),
    "merges of unknown tokens": lambda content: content["model"].update(merges=[["q", "unheard of"]]),
    "a broken expression": lambda content: content.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}
    ),
    "a list": lambda content: content.update(added_tokens={"a": 1}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_tokenizer_that_breaks_the_library_is_one_typed_line(
    make: Make, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make("words")
    change(folder, HOSTILE[name])
    capfd.readouterr()
    with pytest.raises(ModelError, match=r"tokenizer\.json") as caught:
        load(folder)
    assert capfd.readouterr() == ("", "")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, '{"a":' * 5000, "\x00\xff"])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_files_that_are_no_json_or_too_deep_are_typed(make: Make, name: str, text: str) -> None:
    folder = make("words")
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(ModelError):
        load(folder)


def test_a_tokenizer_nested_too_deeply_is_typed(make: Make) -> None:
    folder = make("words")
    text = (folder / "tokenizer.json").read_text()
    deep = '{"type":"Sequence","normalizers":[' * 5000 + "]}" * 5000
    (folder / "tokenizer.json").write_text(text.replace('"normalizer": null', f'"normalizer": {deep}'))
    with pytest.raises(ModelError):
        load(folder)
