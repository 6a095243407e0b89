from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edgetune.core.batch import IGNORED
from edgetune.core.errors import ConfigError, DataError
from edgetune.data.controls import unknown_characters
from edgetune.data.encode import Example, batches, collate, encode, encode_all, encode_prompt, padding_id
from edgetune.data.prompts import Alpaca, ChatTemplate
from edgetune.data.records import Record
from edgetune.data.turns import Prompt

RECORD = Record("Name a bird.", "", "A wren.", "open_qa")
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant:{% endif %}"
STORIES = (
    Path(os.environ.get("EDGETUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    / "models/stories260K"
)
ROOM = 10_000


def texts(record: Record, tokenizer: Any, prompt: Prompt) -> tuple[str, str]:
    with prompt.renderer(tokenizer) as renderer:
        (turn,) = renderer.turns([record])
    return turn.prompt, turn.response


def test_ids_are_those_of_the_full_text(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(eos_token="</s>")
    example = encode(RECORD, tokenizer, Alpaca(), ROOM)
    prompt, response = texts(RECORD, tokenizer, Alpaca())
    assert tokenizer.decode(example.input_ids) == prompt + response
    assert tokenizer.decode(example.input_ids[example.response_start :]) == "A wren.</s>"
    assert example.input_ids[: example.response_start] == encode_prompt(RECORD, tokenizer, Alpaca(), ROOM)


def test_the_beginning_of_sequence_stands_once(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(front=True, bos_token="<s>", eos_token="</s>", chat_template=CHAT)
    for prompt in (Alpaca(), ChatTemplate()):
        example = encode(RECORD, tokenizer, prompt, ROOM)
        assert example.input_ids[0] == tokenizer.bos_token_id
        assert example.input_ids.count(tokenizer.bos_token_id) == 1
        assert example.input_ids[-1] == tokenizer.eos_token_id


def test_an_end_the_tokenizer_adds_itself_is_not_doubled(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(front=True, bos_token="<s>", eos_token="</s>")
    post = type(tokenizer.backend_tokenizer.post_processor)
    tokenizer.backend_tokenizer.post_processor = post(
        single="<s> $A </s>",
        special_tokens=[("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)],
    )
    example = encode(RECORD, tokenizer, Alpaca(), ROOM)
    assert example.input_ids.count(tokenizer.eos_token_id) == 1
    assert encode_prompt(RECORD, tokenizer, Alpaca(), ROOM)[-1] != tokenizer.eos_token_id


def test_a_token_across_the_border_counts_as_response(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(merges=((":", "A"),))
    example = encode(RECORD, tokenizer, Alpaca(), ROOM)
    assert tokenizer.decode(example.input_ids[example.response_start :]) == ":A wren."


def test_works_without_any_special_token(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer()
    example = encode(RECORD, tokenizer, Alpaca(), ROOM)
    assert tokenizer.decode(example.input_ids[example.response_start :]) == "A wren."
    assert padding_id(tokenizer) == 0
    assert padding_id(byte_tokenizer(eos_token="</s>")) == 256
    assert padding_id(byte_tokenizer(eos_token="</s>", pad_token="<p>")) == 257


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(asked=st.integers(0, 60), answered=st.integers(1, 60), room=st.integers(2, 220))
def test_a_long_text_loses_the_middle_of_the_prompt_and_the_end_of_the_response(
    byte_tokenizer, asked: int, answered: int, room: int
) -> None:
    tokenizer = byte_tokenizer()
    record = Record("i" * asked, "", "r" * answered, "")
    whole = encode(record, tokenizer, Alpaca(), ROOM)
    cut = encode(record, tokenizer, Alpaca(), room)
    assert len(cut.input_ids) == min(room, len(whole.input_ids))
    kept = len(cut.input_ids) - cut.response_start
    assert kept >= min(answered, room // 2, room - 1) >= 1
    assert cut.input_ids[cut.response_start :] == whole.input_ids[whole.response_start :][:kept]
    head, tail = (cut.response_start + 1) // 2, cut.response_start // 2
    prompt = whole.input_ids[: whole.response_start]
    assert cut.response_start >= 1
    assert cut.input_ids[:head] == prompt[:head]
    assert cut.input_ids[head : head + tail] == prompt[len(prompt) - tail :]
    assert len(encode_prompt(record, tokenizer, Alpaca(), room)) == min(room, len(prompt))


def test_refuses_what_cannot_be_encoded(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(ConfigError, match="1 tokens hold no"):
        encode(RECORD, tokenizer, Alpaca(), 1)
    with pytest.raises(ConfigError, match="0 tokens hold no"):
        encode_prompt(RECORD, tokenizer, Alpaca(), 0)
    with pytest.raises(DataError, match="no token of the response"):
        encode(Record("i", "", "", ""), tokenizer, Alpaca(), ROOM)


def test_collate_pads_on_the_right_and_labels_the_response() -> None:
    batch = collate([Example((5, 6, 7), 1), Example((8, 9, 5, 6), 3)], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 5, 6]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[IGNORED, 6, 7, IGNORED], [IGNORED, IGNORED, IGNORED, 6]]
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.int64}
    with pytest.raises(DataError):
        collate([], 0)


def test_batches_hold_every_example_once() -> None:
    examples = [Example(tuple(range(1, length + 1)), 1) for length in (3, 9, 4, 8, 2)]
    by_length = list(batches(examples, 2, 0))
    assert [batch.input_ids.shape for batch in by_length] == [(2, 9), (2, 4), (1, 2)]
    in_order = list(batches(examples, 2, 0, sort_by_length=False))
    assert [batch.attention_mask.sum(1).tolist() for batch in in_order] == [[3, 9], [4, 8], [2]]
    assert list(batches([], 2, 0)) == []
    with pytest.raises(ConfigError):
        list(batches(examples, 0, 0))


def test_long_texts_are_quiet(byte_tokenizer, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_tokenizer(model_max_length=16)
    encode(RECORD, tokenizer, Alpaca(), ROOM)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/data or $EDGETUNE_DATA")
def test_a_sentencepiece_tokenizer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    records = [RECORD, Record("Who?", "Ann sings.", " Ann\n", "")]
    for record, example in zip(records, encode_all(records, tokenizer, Alpaca(), ROOM), strict=True):
        prompt, response = texts(record, tokenizer, Alpaca())
        assert list(example.input_ids) == tokenizer(prompt + response).input_ids
        assert example.input_ids[0] == tokenizer.bos_token_id
        assert example.input_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(example.input_ids[example.response_start :]).strip() == response.strip()


SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": ["<|user|>", "<|said|>"]}
TALK = "{{ bos_token }}{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '<|said|>' }}{{ m.content }}"
TALK += "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<|said|>{% endif %}"
QUOTING = Record("Is <|user|> a </s> word?", "", "It is <s></s>, he said", "")


def test_the_text_of_a_control_token_in_a_record_is_encoded_as_text(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(front=True, merges=(("<", "s"),), chat_template=TALK, **SPECIALS)
    controls = set(tokenizer.all_special_ids)
    for prompt, structure in (
        (ChatTemplate(), ["<s>", "<|user|>", "</s>", "<|said|>", "</s>"]),
        (Alpaca(), ["<s>", "</s>"]),
    ):
        example = encode(QUOTING, tokenizer, prompt, ROOM)
        found = [tokenizer.convert_ids_to_tokens(index) for index in example.input_ids if index in controls]
        assert found == structure
        asked, said = texts(QUOTING, tokenizer, prompt)
        front = "<s>" if prompt.add_special_tokens else ""
        assert tokenizer.decode(example.input_ids) == front + asked + said
        assert tokenizer.decode(example.input_ids[example.response_start :]) == said
        assert example.input_ids[: example.response_start] == encode_prompt(QUOTING, tokenizer, prompt, ROOM)


def test_around_a_quotation_everything_is_encoded_as_ever(byte_tokenizer) -> None:
    """The oracle: the same text with another word in the place of the quotation, of the same length and no merges."""
    tokenizer = byte_tokenizer(front=True, merges=(("A", "Ġ"), ("s", "e")), chat_template=TALK, **SPECIALS)
    with_quote = encode(Record("A </s> house", "", "A see", ""), tokenizer, ChatTemplate(), ROOM)
    without = encode(Record("A <xs> house", "", "A see", ""), tokenizer, ChatTemplate(), ROOM)
    differing = [
        (tokenizer.decode(a), tokenizer.decode(b))
        for a, b in zip(with_quote.input_ids, without.input_ids, strict=True)
        if a != b
    ]
    assert differing == [("/", "x")]
    assert with_quote.response_start == without.response_start


@pytest.mark.skipif(not STORIES.is_dir(), reason="needs ../shared/data or $EDGETUNE_DATA")
def test_a_sentencepiece_tokenizer_quotes_without_a_space_of_its_own() -> None:
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    example = encode(Record("Say </s>x", "", "He says <s>.", ""), tokenizer, Alpaca(), ROOM)
    assert (
        example.input_ids.count(tokenizer.eos_token_id)
        == 1
        == example.input_ids.count(tokenizer.bos_token_id)
    )
    said = tokenizer.decode(example.input_ids[example.response_start :], skip_special_tokens=True)
    assert said.strip() == "He says <s>."
    assert "\nSay </s>x\n" in tokenizer.decode(example.input_ids)


def test_stand_ins_cannot_be_forged(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=TALK, **SPECIALS)
    for text in ("</s> \U000f00000\U000f0001", "\U000f0000 </s> x"):
        with pytest.raises(DataError, match="private character"):
            encode(Record(text, "", "b", ""), tokenizer, ChatTemplate(), ROOM)
    example = encode(Record("\U000f00000\U000f0001", "", "b", ""), tokenizer, ChatTemplate(), ROOM)
    assert "\U000f00000\U000f0001" in tokenizer.decode(example.input_ids)


def test_a_vocabulary_that_spells_a_control_token_is_refused(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(merges=(("<", "s"), ("<s", ">")), chat_template=TALK, **SPECIALS)
    with pytest.raises(DataError, match="no other token for it"):
        encode(Record("a <s> b", "", "b", ""), tokenizer, ChatTemplate(), ROOM)
    encode(Record("a </s> b", "", "b", ""), tokenizer, ChatTemplate(), ROOM)


def test_a_tokenizer_without_a_backend_refuses_to_quote(byte_tokenizer) -> None:
    class Slow:
        """What a slow tokenizer has of all this."""

        def __init__(self, fast: Any) -> None:
            self.fast = fast

        def __call__(self, *texts: Any, **options: Any) -> Any:
            return self.fast(*texts, **options)

        def __getattr__(self, name: str) -> Any:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(self.fast, name)

    slow: Any = Slow(byte_tokenizer(**SPECIALS))
    assert encode(RECORD, slow, Alpaca(), ROOM) == encode(RECORD, slow.fast, Alpaca(), ROOM)
    with pytest.raises(DataError, match="text of a control token"):
        encode(QUOTING, slow, Alpaca(), ROOM)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["</s>", "<s>", "<|user|>", "<|said|>", "a", " ", "\n", "<", "s>", "</s", "\u4e2d", "|>"]
        )
    ),
    st.lists(st.sampled_from(["</s>", "<s>", "b", " ", "<|", "|>", "said", "\n"]), min_size=1),
)
def test_no_record_adds_structure(byte_tokenizer, asked: list[str], said: list[str]) -> None:
    tokenizer = byte_tokenizer(front=True, merges=(("<", "s"), ("s", ">")), **SPECIALS)
    record = Record("".join(asked), "", "x" + "".join(said) + "x", "")
    example = encode(record, tokenizer, Alpaca(), ROOM)
    assert [index for index in example.input_ids if index in tokenizer.all_special_ids] == [
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ]
    prompt, response = texts(record, tokenizer, Alpaca())
    assert tokenizer.decode(example.input_ids) == "<s>" + prompt + response


def test_characters_the_tokenizer_does_not_know(byte_tokenizer, tiny_tokenizer: Any) -> None:
    assert unknown_characters(byte_tokenizer(), "a\u00e9\u4e2d\U0001f600") == frozenset()
    assert unknown_characters(tiny_tokenizer, "a\u00e9\u4e2d \n\u0301\u200b") == {"\u00e9", "\u4e2d"}
    assert unknown_characters(tiny_tokenizer, "") == frozenset()
