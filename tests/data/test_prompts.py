from __future__ import annotations

import pytest

from edgetune.core.errors import ConfigError
from edgetune.data.prompts import PROMPTS, Alpaca, ChatTemplate, default_prompt
from edgetune.data.records import Record

PLAIN = Record("Name a bird.", "", "A wren.", "open_qa")
WITH_CONTEXT = Record("Who sings?", "Ann sings.", "Ann", "closed_qa")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}


def test_alpaca_is_the_stanford_template(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(eos_token="</s>")
    assert Alpaca()(PLAIN, tokenizer) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nName a bird.\n\n### Response:",
        "A wren.</s>",
    )
    assert Alpaca()(WITH_CONTEXT, tokenizer)[0] == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWho sings?\n\n### Input:\nAnn sings.\n\n### Response:"
    )


def test_braces_in_a_record_stay_as_they_are(byte_tokenizer) -> None:
    record = Record("Print {context}", "{instruction} {0}", "{}", "")
    prompt, response = Alpaca()(record, byte_tokenizer())
    assert "Print {context}" in prompt
    assert "{instruction} {0}" in prompt
    assert response == "{}"


def test_chat_uses_the_tokenizer_s_template_and_ends_with_the_turn(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, **TURNS)
    assert ChatTemplate()(WITH_CONTEXT, tokenizer) == (
        "<|im_start|>user\nWho sings?\n\nAnn sings.<|im_end|>\n<|im_start|>assistant\n",
        "Ann<|im_end|>",
    )


def test_a_response_that_quotes_the_end_marker_is_not_cut(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, **TURNS)
    quoting = Record("?", "", "It is <|im_end|> there", "")
    assert ChatTemplate()(quoting, tokenizer)[1] == "It is <|im_end|> there<|im_end|>"


def test_a_template_without_an_end_marker_gets_the_end_of_sequence(byte_tokenizer) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    tokenizer = byte_tokenizer(eos_token="</s>", chat_template=template)
    record = Record(" a ", "", " b ", "")
    assert ChatTemplate()(record, tokenizer) == ("[user]a[assistant]", "b</s>")
    assert ChatTemplate()(record, byte_tokenizer(chat_template=template)) == ("[user]a[assistant]", "b")


def test_a_template_whose_turn_does_not_start_with_its_prompt_is_refused(byte_tokenizer) -> None:
    thinking = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    with pytest.raises(ConfigError, match=r"does not start with its prompt.*Alpaca"):
        ChatTemplate()(PLAIN, byte_tokenizer(chat_template=thinking, **TURNS))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no users') }}", "{{ messages[9].role }}", "{% if %}", None]
)
def test_a_template_that_cannot_render_is_refused(byte_tokenizer, template: str | None) -> None:
    with pytest.raises(ConfigError, match="cannot render"):
        ChatTemplate()(PLAIN, byte_tokenizer(chat_template=template))


def test_the_default_follows_the_tokenizer(byte_tokenizer) -> None:
    assert default_prompt(byte_tokenizer()) == Alpaca()
    assert default_prompt(byte_tokenizer(chat_template=CHATML)) == ChatTemplate()
    assert {"alpaca": Alpaca(), "chat": ChatTemplate()} == PROMPTS
