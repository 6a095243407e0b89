"""What a model reads of a conversation, and of a text that nobody asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgetune.core.errors import ConfigError
from edgetune.data.encode import encode_all, encode_fitting, encode_whole
from edgetune.data.prompts import PROMPTS, Alpaca, ChatTemplate
from edgetune.data.records import Message, Record
from edgetune.data.turns import Prompt, Turn

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEAF = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "[{{ m.role }}]{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FORGETS_THOUGHTS = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}",
)
TURNS = {"eos_token": "<|im_end|>", "bos_token": "<s>", "additional_special_tokens": ["<|im_start|>"]}
HISTORY = (Message("system", "Be brief."), Message("user", "One?"), Message("assistant", "1"))
RECORD = Record("Two?", "after one", "2", "", HISTORY, "x")
PLAIN = Record("", "", "a text", "", plain=True)


def turns(prompt: Prompt, tokenizer: Any, *records: Record) -> list[Turn]:
    with prompt.renderer(tokenizer) as renderer:
        return renderer.turns(records)


def by_transformers(tokenizer: Any, record: Record, *, folded: bool = False) -> tuple[str, str]:
    messages = [{"role": one.role, "content": one.text} for one in record.history]
    messages.append({"role": "user", "content": f"{record.instruction}\n\n{record.context}".strip()})
    if folded and messages[0]["role"] == "system":
        system = messages.pop(0)
        messages[0]["content"] = f"{system['content']}\n\n{messages[0]['content']}"
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    messages.append({"role": "assistant", "content": record.response})
    return prompt, tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(("template", "folded"), [(CHATML, False), (DEAF, True)])
@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_conversation_reads_as_transformers_renders_it(
    byte_tokenizer, template: str, folded: bool, kept: int
) -> None:
    tokenizer = byte_tokenizer(chat_template=template, **TURNS)
    record = Record("Two?", "after one", "2", "", HISTORY[:kept], "x")
    (made,) = turns(ChatTemplate(), tokenizer, record)
    prompt, full = by_transformers(tokenizer, record, folded=folded)
    assert made.prompt == prompt
    assert made.response == "2<|im_end|>"
    assert full.startswith(prompt + made.response)


def test_only_the_last_answer_is_trained_on(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, **TURNS)
    for prompt in PROMPTS.values():
        (example,) = encode_all([RECORD], tokenizer, prompt, 1000)
        assert tokenizer.decode(example.input_ids[example.response_start :]) == "2<|im_end|>"
        before = tokenizer.decode(example.input_ids[: example.response_start])
        assert all(text in before for text in ("Be brief.", "One?", "1", "Two?", "after one"))


def test_control_tokens_that_anybody_spells_are_text(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, **TURNS)
    history = (
        Message("system", "<|im_start|>"),
        Message("user", "user\n<|im_end|>"),
        Message("assistant", "say <|im_end|> now"),
    )
    record = Record("<|im_end|>?", "", "<|im_start|>!", "", history, "x")
    for prompt in (ChatTemplate(), Alpaca()):
        (made,) = turns(prompt, tokenizer, record)
        text = made.prompt + made.response
        said = [*(one.text for one in history), record.instruction, record.response]
        assert [text[start:end] for start, end in made.quoted] == [
            next(token for token in ("<|im_start|>", "<|im_end|>") if token in one) for one in said
        ]
        for (start, end), around in zip(made.quoted, said, strict=True):
            offset = around.index(text[start:end])
            assert text[start - offset : start - offset + len(around)] == around
        with prompt.renderer(tokenizer) as renderer:
            (encoded,) = encode_whole([record], tokenizer, prompt, renderer)
        controls = [token for token in encoded.example.input_ids if token >= 256]
        left = text
        for start, end in reversed(made.quoted):
            left = left[:start] + left[end:]
        assert len(controls) == left.count("<|im_start|>") + left.count("<|im_end|>")


def test_thoughts_of_earlier_answers_may_be_left_out_and_nothing_else(byte_tokenizer) -> None:
    history = (Message("user", "One?"), Message("assistant", "<think>hm</think>\n1"))
    record = Record("Two?", "", "<think>so</think>2", "", history, "x")
    tokenizer = byte_tokenizer(chat_template=FORGETS_THOUGHTS, **TURNS)
    (made,) = turns(ChatTemplate(), tokenizer, record)
    assert made.prompt == by_transformers(tokenizer, record)[0]
    assert "hm" not in made.prompt
    assert "\n1<|im_end|>" in made.prompt
    assert made.response == "<think>so</think>2<|im_end|>"
    for lost in (
        "{{ m.content[:2] }}",
        "{{ m.content if not loop.first else '' }}",
        "{{ m.content | upper }}",
    ):
        tokenizer = byte_tokenizer(chat_template=CHATML.replace("{{ m.content }}", lost), **TURNS)
        with pytest.raises(ConfigError, match=r"the chat template .*(changes|leaves out)"):
            turns(ChatTemplate(), tokenizer, RECORD)


def test_a_template_that_forgets_the_history_is_refused(byte_tokenizer) -> None:
    forgets = CHATML.replace(
        "{% for m in messages %}", "{% for m in messages %}{% if loop.revindex <= 2 %}"
    ).replace("{% endfor %}", "{% endif %}{% endfor %}")
    tokenizer = byte_tokenizer(chat_template=forgets, **TURNS)
    with pytest.raises(ConfigError, match=r"record 'Two\?': .*or what was said before"):
        turns(ChatTemplate(), tokenizer, RECORD)


def test_without_a_chat_template_exchanges_stand_one_behind_the_other(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(eos_token="</s>")
    (made,) = turns(Alpaca(), tokenizer, RECORD)
    (first,) = turns(Alpaca(), tokenizer, Record("Be brief.\n\nOne?", "", "1", ""))
    (second,) = turns(Alpaca(), tokenizer, Record("Two?", "after one", "2", ""))
    assert made.prompt == first.prompt + first.response + second.prompt
    assert made.response == "2</s>"


def test_an_end_that_an_earlier_answer_brings_is_not_doubled(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, **TURNS)
    brought = Record("Two?", "after one", "2", "", (*HISTORY[:2], Message("assistant", "1 <|im_end|>")), "x")
    assert turns(ChatTemplate(), tokenizer, brought) == turns(ChatTemplate(), tokenizer, RECORD)


@pytest.mark.parametrize("name", sorted(PROMPTS))
@pytest.mark.parametrize("front", [False, True])
def test_a_plain_text_stands_alone_and_all_of_it_is_scored(byte_tokenizer, name: str, front: bool) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, front=front, **TURNS)
    (plain, asked) = encode_all([PLAIN, RECORD], tokenizer, PROMPTS[name], 1000)
    expected = [*tokenizer("a text").input_ids, tokenizer.eos_token_id]
    assert list(plain.input_ids) == expected
    assert plain.response_start == 1
    assert len(expected) == len("a text") + 1 + front
    assert asked == encode_all([RECORD], tokenizer, PROMPTS[name], 1000)[0]


def test_the_oldest_exchanges_go_where_a_history_is_too_long(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, **TURNS)
    system, talk = HISTORY[0], [Message("user", "u" * 50), Message("assistant", "a" * 50)]
    long = Record("Now?", "", "yes", "", (system, *talk * 5), "x")
    prompt = ChatTemplate()
    with prompt.renderer(tokenizer) as renderer:
        whole = [encode_whole([long_one], tokenizer, prompt, renderer)[0] for long_one in shorter(long)]
        for limit in (30, 60, 100, 250, 400, 1000):
            (found,) = encode_fitting([long], tokenizer, prompt, renderer, limit)
            fitting = [one for one in whole if len(one.example.input_ids) <= limit]
            expected = (fitting or whole[-1:])[0]
            assert found == replace(expected, dropped=expected is not whole[0])
    assert "Be brief." in whole[-1].turn.prompt
    assert "uuu" not in whole[-1].turn.prompt


def shorter(record: Record) -> list[Record]:
    system, *talk = record.history
    return [
        Record(record.instruction, "", record.response, "", (system, *talk[start:]), "x")
        for start in range(0, len(talk) + 1, 2)
    ]
