"""Documents of a text file, and sequences of full length."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from edgetune.core.errors import ConfigError, DataError
from edgetune.data import packing
from edgetune.data.packing import documents, pack

BOS = 26


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Letters a to z are 0 to 25, and a text begins with BOS."""
    letters = {chr(97 + index): index for index in range(26)} | {"<s>": BOS}
    made = Tokenizer(models.WordLevel(letters, "z"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>")


def test_documents_are_what_stands_between_separators(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(
        "\ufeffOne.\n\nStill one.\n<|endoftext|>\n\n<|endoftext|>\nTwo <|endoftext|> two.\n", "utf-8"
    )
    assert list(documents(path)) == ["One.\n\nStill one.", "Two <|endoftext|> two."]
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\n")
    with pytest.raises(DataError, match=r"bad.txt, line 2.*UTF-8"):
        list(documents(tmp_path / "bad.txt"))


def test_sequences_are_full_and_lose_no_token_but_the_last(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["abc", "defgh", "i", "jklmnop"]
    rows = pack(texts, tokenizer, length=5, tokens=1000, seed=3)
    assert all(len(row) == 5 and row[0] == BOS for row in rows)
    said = "".join("|" if index == BOS else chr(97 + index) for row in rows for index in row[1:])
    ordered = [text for text in said.split("|") if text]
    assert sorted(ordered[:-1]) == sorted(set(texts) & set(ordered[:-1]))
    assert any(text.startswith(ordered[-1]) for text in texts)
    whole = sum(map(len, texts)) + len(texts) - 1  # a BOS between two
    assert len(rows) == whole // 4


def test_as_many_as_are_wanted_in_an_order_of_the_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [chr(97 + index) * 7 for index in range(20)]
    rows = pack(texts, tokenizer, length=4, tokens=9, seed=0)
    assert len(rows) == 3
    assert rows == pack(texts, tokenizer, length=4, tokens=9, seed=0)
    assert rows != pack(texts, tokenizer, length=4, tokens=9, seed=1)


def test_a_long_document_is_drawn_in_pieces(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "PIECE", 6)
    text = "".join(chr(97 + index % 26) for index in range(120))
    firsts = {pack([text], tokenizer, length=7, tokens=7, seed=seed)[0][1] for seed in range(12)}
    assert len(firsts) > 3


def test_too_little_text_is_one_short_sequence_and_none_is_none(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pack(["ab"], tokenizer, length=9, tokens=100, seed=0) == [(BOS, 0, 1)]
    assert pack([], tokenizer, length=9, tokens=100, seed=0) == []
    with pytest.raises(ConfigError, match="hold no text"):
        pack(["ab"], tokenizer, length=1, tokens=100, seed=0)
