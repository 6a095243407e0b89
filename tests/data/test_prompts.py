"""What a record becomes in every prompt, and what chat templates may do to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from edgetune.core.errors import ConfigError
from edgetune.data.prompts import PROMPTS, Alpaca, ChatTemplate, FedKSeed, default_prompt
from edgetune.data.records import Record
from edgetune.data.turns import Frame, Prompt, Turn

PLAIN = Record("Name a bird.", "", "A wren.", "open_qa")
WITH_CONTEXT = Record("Who sings?", "Ann sings.", "Ann", "closed_qa")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURNS = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
PARTS = "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}"


def turn(prompt: Prompt, tokenizer: Any, record: Record = PLAIN) -> Turn:
    with prompt.renderer(tokenizer) as renderer:
        return renderer.turns([record])[0]


def pair(prompt: Prompt, tokenizer: Any, record: Record = PLAIN) -> tuple[str, str]:
    made = turn(prompt, tokenizer, record)
    return made.prompt, made.response


def frame(tokenizer: Any) -> Frame:
    with ChatTemplate().renderer(tokenizer) as renderer:
        return renderer.frame


def quotes(made: Turn) -> list[str]:
    text = made.prompt + made.response
    return [text[start:end] for start, end in made.quoted]


def test_alpaca_is_the_stanford_template(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(eos_token="</s>")
    assert pair(Alpaca(), tokenizer) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\nName a bird.\n\n### Response:",
        "A wren.</s>",
    )
    assert pair(Alpaca(), tokenizer, WITH_CONTEXT)[0] == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nWho sings?\n\n### Input:\nAnn sings.\n\n### Response:"
    )


def test_fedkseed_asks_in_its_own_words(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(eos_token="</s>")
    assert pair(FedKSeed(), tokenizer, WITH_CONTEXT) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response for the task request.\n\n"
        "### Instruction:\nWho sings?\n\n### Input:\nAnn sings.\n\n### Response:",
        "Ann</s>",
    )
    assert pair(FedKSeed(), tokenizer)[0] == (
        "Below is an instruction that describes a task. Write a response for the task request.\n\n"
        "### Instruction:\nName a bird.\n\n### Response:"
    )


def test_braces_and_names_of_places_in_a_record_stay_as_they_are(byte_tokenizer) -> None:
    record = Record("Print {context}", "{instruction} {0}", "{}", "")
    prompt, response = pair(Alpaca(), byte_tokenizer(), record)
    assert "### Instruction:\nPrint {context}\n\n### Input:\n{instruction} {0}\n\n" in prompt
    assert response == "{}"


def test_chat_uses_the_tokenizer_s_template_and_ends_with_the_turn(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, **TURNS)
    made = turn(ChatTemplate(), tokenizer, WITH_CONTEXT)
    assert (made.prompt, made.response) == (
        "<|im_start|>user\nWho sings?\n\nAnn sings.<|im_end|>\n<|im_start|>assistant\n",
        "Ann<|im_end|>",
    )
    assert not made.quoted
    assert not made.framed
    assert frame(tokenizer) == Frame(ends=("<|im_end|>",))


def test_only_the_default_of_several_templates_is_used(byte_tokenizer) -> None:
    several = {"default": CHATML, "tool_use": "{{ 1 / 0 }}"}
    assert pair(ChatTemplate(), byte_tokenizer(chat_template=several, **TURNS))[1] == "A wren.<|im_end|>"


@pytest.mark.parametrize("end", ["<|im_end|>", "<|fin|>"])
def test_the_end_of_a_turn_needs_not_be_the_end_of_sequence_or_special(byte_tokenizer, end: str) -> None:
    tokenizer = byte_tokenizer(
        chat_template=CHATML.replace("<|im_end|>", end),
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.add_tokens([end])
    assert pair(ChatTemplate(), tokenizer)[1] == f"A wren.{end}"
    assert frame(tokenizer).ends == (end, "<|endoftext|>")


def test_what_follows_the_first_end_is_not_trained_on(byte_tokenizer) -> None:
    template = CHATML.replace(
        "{% if add", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add"
    )
    tokenizer = byte_tokenizer(
        chat_template=template, eos_token="</s>", additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    assert pair(ChatTemplate(), tokenizer)[1] == "A wren.<|im_end|>"


def test_control_tokens_in_a_record_are_quoted_not_obeyed(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=CHATML, **TURNS)
    quoting = Record("What is <|im_start|>?", "a <|im_end|><|im_end|>", "It is <|im_end|> there", "")
    made = turn(ChatTemplate(), tokenizer, quoting)
    assert made.response == "It is <|im_end|> there<|im_end|>"
    assert quotes(made) == ["<|im_start|>", "<|im_end|>", "<|im_end|>", "<|im_end|>"]
    places = [made.prompt.index("is <|im_start|>") + 3, made.prompt.index("a <|im_end|>") + 2]
    assert [start for start, _ in made.quoted[:2]] == places
    assert quotes(turn(Alpaca(), tokenizer, quoting)) == quotes(made)


def test_an_end_that_a_response_brings_is_not_doubled(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(
        chat_template=CHATML, eos_token="</s>", additional_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    for own in (
        "A wren.<|im_end|>",
        "A wren. <|im_end|>\n<|im_end|>\n",
        "A wren.</s>",
        "A wren.<|im_end|></s>",
    ):
        record = Record("i", "", own, "")
        made = turn(ChatTemplate(), tokenizer, record)
        assert (made.response, made.quoted) == ("A wren.<|im_end|>", ())
        assert frame(tokenizer).without_own_end(record) == Record("i", "", "A wren.", "")
    assert pair(Alpaca(), tokenizer, Record("i", "", "A wren.</s>", ""))[1] == "A wren.</s>"
    lone = Record("i", "", "</s>", "")
    assert frame(tokenizer).without_own_end(lone) is lone
    assert frame(tokenizer).without_own_end(PLAIN) is PLAIN


def test_a_template_without_an_end_marker_gets_the_end_of_sequence(byte_tokenizer) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}"
    template += "{% if add_generation_prompt %}[assistant]{% endif %}"
    record = Record(" a ", "", " b ", "")
    assert pair(ChatTemplate(), byte_tokenizer(eos_token="</s>", chat_template=template), record) == (
        "[user]a[assistant]",
        "b</s>",
    )
    without = byte_tokenizer(chat_template=template)
    assert pair(ChatTemplate(), without, record) == ("[user]a[assistant]", "b")
    assert frame(without).ends == ()


def test_an_end_in_plain_text_is_kept_and_cut_from_answers(byte_tokenizer) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }} ##\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = byte_tokenizer(eos_token="</s>", chat_template=template)
    assert pair(ChatTemplate(), tokenizer) == ("user: Name a bird. ##\nassistant: ", "A wren. ##\n</s>")
    assert frame(tokenizer).answer("A wren. ##\nuser: And another") == "A wren."


THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>{% else %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REASONED = Record("7 + 7?", "", "<think>seven and seven</think>14", "")


def test_reasoning_that_a_template_drops_is_trained_on_in_the_template_s_frame(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=THINKING, **TURNS)
    made = turn(ChatTemplate(), tokenizer, REASONED)
    assert made.response == "<think>seven and seven</think>14<|im_end|>"
    assert made.framed
    assert not turn(ChatTemplate(), tokenizer).framed


@pytest.mark.parametrize("rewriting", ["| upper", "| e", "| replace('wren', 'crow')", "[:3]"])
def test_a_response_is_trained_on_as_it_is_whatever_the_template_does_to_it(
    byte_tokenizer, rewriting: str
) -> None:
    template = CHATML.replace("m.content", f"m.content if m.role == 'user' else (m.content {rewriting})")
    record = Record("i", "", "<b>A wren & a wren</b>", "")
    made = turn(ChatTemplate(), byte_tokenizer(chat_template=template, **TURNS), record)
    assert (made.response, made.framed) == ("<b>A wren & a wren</b><|im_end|>", True)


def test_a_word_of_the_template_is_not_taken_for_the_record_s(byte_tokenizer) -> None:
    record = Record("user", "", "assistant", "")
    tokenizer = byte_tokenizer(chat_template=CHATML, **TURNS)
    assert pair(ChatTemplate(), tokenizer, record)[1] == "assistant<|im_end|>"
    dropping = CHATML.replace("m.content", "m.content if m.content != 'user' else ''")
    with pytest.raises(ConfigError, match="instruction or the context"):
        turn(ChatTemplate(), byte_tokenizer(chat_template=dropping, **TURNS), record)


def test_every_record_is_checked_and_the_wrong_one_is_named(byte_tokenizer) -> None:
    for change in ("m.content | e", "m.content[:30]", "m.content | replace('&', 'and')"):
        template = CHATML.replace("m.content", f"(m.content if m.role != 'user' else {change})")
        tokenizer = byte_tokenizer(chat_template=template, **TURNS)
        bad = Record("Say salt & pepper, and go on for a while", "", "b", "")
        with ChatTemplate().renderer(tokenizer) as renderer:
            assert len(renderer.turns([PLAIN] * 300)) == 300
            with pytest.raises(ConfigError, match=r"record 'Say salt.*data.prompt to \"alpaca\""):
                renderer.turns([*[PLAIN] * 300, bad])


@pytest.mark.parametrize("roles", [("user", "assistant"), ("user",), ("assistant",)])
def test_contents_are_given_as_parts_where_a_template_reads_parts(
    byte_tokenizer, roles: tuple[str, ...]
) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role in ROLES %}PARTS{% else %}"
    template += "{{ m.content + '' }}{% endif %}<|im_end|>\n{% endfor %}"
    template += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    template = template.replace("ROLES", repr(list(roles))).replace("PARTS", PARTS)
    assert pair(ChatTemplate(), byte_tokenizer(chat_template=template, **TURNS), WITH_CONTEXT) == (
        "<|im_start|>user\nWho sings?\n\nAnn sings.<|im_end|>\n<|im_start|>assistant\n",
        "Ann<|im_end|>",
    )


def test_a_template_that_leaves_the_question_or_the_answer_out_is_refused(byte_tokenizer) -> None:
    for template in ("{% for m in messages %}[{{ m.role }}]{% endfor %}", "{{ messages[0].content }}", "x"):
        with pytest.raises(ConfigError, match=r"leaves out.*data.prompt"):
            turn(ChatTemplate(), byte_tokenizer(chat_template=template, **TURNS))


def test_a_template_without_a_generation_prompt_leaves_the_header_to_the_model(byte_tokenizer) -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = byte_tokenizer(chat_template=template, **TURNS)
    assert pair(ChatTemplate(), tokenizer) == (
        "<|im_start|>user: Name a bird.<|im_end|>",
        "<|im_start|>assistant: A wren.<|im_end|>",
    )
    assert frame(tokenizer).answer("assistant: A wren.") == "A wren."
    # also where the template would rewrite the answer
    dropping = template.replace("m.content", "m.content.split('</think>')[-1]")
    made = turn(ChatTemplate(), byte_tokenizer(chat_template=dropping, **TURNS), REASONED)
    assert made.response == "<|im_start|>assistant: <think>seven and seven</think>14<|im_end|>"


EMPTY_THOUGHT = CHATML.replace(
    "{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
)


def test_what_a_template_says_before_an_answer_is_trained_on_and_not_scored(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=EMPTY_THOUGHT, **TURNS)
    assert pair(ChatTemplate(), tokenizer)[1] == "<think>\n\n</think>\n\nA wren.<|im_end|>"
    said = frame(tokenizer)
    assert said.answer("<think>\n\n</think>\n\nA wren.") == "A wren."
    assert said.answer("A wren.") == "A wren."
    assert said.answer("<think>hm</think>A wren.") == "<think>hm</think>A wren."


OPENED = THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def test_an_opening_in_the_prompt_is_not_asked_for_again(byte_tokenizer) -> None:
    tokenizer = byte_tokenizer(chat_template=OPENED, **TURNS)
    for response in ("<think>\nseven</think>14", "<think>seven</think>14"):
        made = turn(ChatTemplate(), tokenizer, Record("7 + 7?", "", response, ""))
        assert made.prompt.endswith("<|im_start|>assistant\n<think>\n")
        assert made.response == "seven</think>14<|im_end|>"
        assert frame(tokenizer).answer("seven</think>14", made.opening) == response
    with pytest.raises(ConfigError, match=r"record 'Name a bird.'.*begins every answer with '<think>'"):
        turn(ChatTemplate(), tokenizer)


# Plain answers get an empty thought, reasoned ones their own in canonical form; the prompt opens one.
HYBRID = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% if '</think>' in m.content %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + m.content.split('</think>')[-1].strip() }}"
    "{% else %}{{ '<think>\n\n</think>\n\n' + m.content }}{% endif %}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("response", "trained", "framed"),
    [
        ("A wren.", "\n</think>\n\nA wren.", False),
        ("<think>\nseven\n</think>\n\n14", "seven\n</think>\n\n14", False),
        ("<think>seven</think>14", "seven</think>14", True),
    ],
)
def test_a_template_of_a_model_that_may_reason(
    byte_tokenizer, response: str, trained: str, framed: bool
) -> None:
    tokenizer = byte_tokenizer(chat_template=HYBRID, **TURNS)
    made = turn(ChatTemplate(), tokenizer, Record("7 + 7?", "", response, ""))
    assert made.prompt.endswith("<|im_start|>assistant\n<think>\n")
    assert (made.response, made.framed) == (trained + "<|im_end|>", framed)
    assert frame(tokenizer).answer(trained, made.opening) == response


@pytest.mark.parametrize("block", ["<|channel>thought\n<channel|>", "[THINK][/THINK]", "Answer: "])
def test_a_closed_block_in_the_prompt_only_is_followed_by_the_answer(byte_tokenizer, block: str) -> None:
    template = CHATML.replace("assistant\n{% endif %}", f"assistant\n{block}{{% endif %}}")
    tokenizer = byte_tokenizer(chat_template=template, **TURNS)
    made = turn(ChatTemplate(), tokenizer)
    assert made.prompt.endswith(f"<|im_start|>assistant\n{block}")
    assert (made.response, made.opening) == ("A wren.<|im_end|>", "")
    assert frame(tokenizer).answer("A wren.") == "A wren."


def test_a_header_in_other_white_space_is_not_said_twice(byte_tokenizer) -> None:
    template = "{% for m in messages %}{{ '\n' + m.role | upper + ': ' + m.content + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '\n\nASSISTANT:\n' }}{% endif %}"
    tokenizer = byte_tokenizer(chat_template=template, eos_token="</s>")
    assert pair(ChatTemplate(), tokenizer) == ("\nUSER: Name a bird.</s>\n\nASSISTANT:\n", "A wren.</s>")
    assert frame(tokenizer).answer("A wren.") == "A wren."


def test_a_template_whose_turn_does_not_start_with_its_prompt_is_refused(byte_tokenizer) -> None:
    template = "{% if add_generation_prompt %}You are asked: {% endif %}" + CHATML
    with pytest.raises(ConfigError, match=r"does not start with its prompt.*alpaca"):
        turn(ChatTemplate(), byte_tokenizer(chat_template=template, **TURNS))
    only_long = template.replace(
        "add_generation_prompt %}You", "add_generation_prompt and messages[0].content|length > 20 %}You"
    )
    with pytest.raises(ConfigError, match=r"record 'Name a very small.*does not start with its prompt"):
        turn(
            ChatTemplate(),
            byte_tokenizer(chat_template=only_long, **TURNS),
            Record("Name a very small bird of the garden", "", "b", ""),
        )


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no users') }}", "{{ messages[9].role }}", "{% if %}", "{{ 1 / 0 }}"]
)
def test_a_template_that_cannot_render_is_refused(byte_tokenizer, template: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot render.*data.prompt"):
        turn(ChatTemplate(), byte_tokenizer(chat_template=template))


def test_a_template_that_refuses_one_record_names_it(byte_tokenizer) -> None:
    template = "{% if 'song' in messages[0].content %}{{ raise_exception('no songs') }}{% endif %}" + CHATML
    tokenizer = byte_tokenizer(chat_template=template, **TURNS)
    with pytest.raises(ConfigError, match=r"record 'Sing a song'.*no songs"):
        turn(ChatTemplate(), tokenizer, Record("Sing a song", "", "la", ""))


def test_without_a_template_chat_is_refused(byte_tokenizer) -> None:
    for template in (None, {"tool_use": CHATML}):
        with pytest.raises(ConfigError, match="no chat template"):
            turn(ChatTemplate(), byte_tokenizer(chat_template=template))


def test_the_default_follows_the_tokenizer(byte_tokenizer) -> None:
    assert default_prompt(byte_tokenizer()) == Alpaca()
    assert default_prompt(byte_tokenizer(chat_template=CHATML)) == ChatTemplate()
    assert {"alpaca": Alpaca(), "chat": ChatTemplate(), "fedkseed": FedKSeed()} == PROMPTS


def test_a_process_that_ends_with_its_renderer(byte_tokenizer) -> None:
    def opened() -> Iterator[Any]:
        with ChatTemplate().renderer(byte_tokenizer(chat_template=CHATML, **TURNS)) as renderer:
            yield renderer

    (renderer,) = opened()
    assert renderer._templates._process.poll() is not None
