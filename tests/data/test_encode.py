from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edgetune.core.batch import IGNORED
from edgetune.core.errors import ConfigError, DataError
from edgetune.data.encode import Example, batches, collate, encode, encode_all, encode_prompt, padding_id
from edgetune.data.prompts import Alpaca, ChatTemplate
from edgetune.data.records import Record

RECORD = Record("Name a bird.", "", "A wren.", "open_qa")
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant:{% endif %}"
STORIES = (
    Path(os.environ.get("EDGETUNE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    / "models/stories260K"
)
ROOM = 10_000


def test_ids_are_those_of_the_full_text(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(eos_token="</s>")
    example = encode(RECORD, tokenizer, Alpaca(), ROOM)
    prompt, response = Alpaca()(RECORD, tokenizer)
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
    with pytest.raises(DataError, match="no token of the prompt"):
        encode(
            RECORD,
            byte_tokenizer(chat_template="{% if messages|length > 1 %}x{% endif %}"),
            ChatTemplate(),
            ROOM,
        )


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
        prompt, response = Alpaca()(record, tokenizer)
        assert list(example.input_ids) == tokenizer(prompt + response).input_ids
        assert example.input_ids[0] == tokenizer.bos_token_id
        assert example.input_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(example.input_ids[example.response_start :]).strip() == response.strip()
