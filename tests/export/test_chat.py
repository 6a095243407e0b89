"""A conversation with a file: what a line can ask for, how it ends, and what is remembered."""

from __future__ import annotations

import signal
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from toys import byte_level, tiny_llama

from edgetune.core.errors import ConfigError, ModelError, TerminatedError
from edgetune.export.chat import HELP, Conversation, Manner, answer, chat
from edgetune.export.gguf_file import write_gguf
from edgetune.export.llama_cpp import ContextFullError, LlamaCpp
from edgetune.export.lora import labels

SHORT = Manner(max_new_tokens=5)
Line = str | BaseException


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("chat") / "m.gguf"
    return write_gguf(file, tiny_llama(), byte_level(), quantised={}, float_type="F32")


@pytest.fixture(scope="module")
def llama(path: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(path) as loaded:
        yield loaded


def typing(*lines: Line) -> Callable[[str], str]:
    """Make somebody who types these lines."""
    left = iter(lines)

    def read(prompt: str) -> str:
        line = next(left)
        if isinstance(line, BaseException):
            raise line
        return line

    return read


def alone(path: Path, **how: Any) -> list[dict[str, str]]:
    """A conversation with one file."""
    (messages,) = chat([path], **how)
    return messages


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("ending", ["/exit", "/quit", EOFError(), KeyboardInterrupt()], ids=repr)
def test_a_conversation_ends_cleanly(path: Path, ending: Line) -> None:
    written: list[str] = []
    messages = alone(path, read=typing("hello", ending), write=written.append, manner=SHORT)
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert "".join(written).strip() == messages[1]["content"].strip()
    assert len(written) > 2, "pieces come one by one"


def test_a_signal_of_the_system_ends_the_program_and_not_an_answer(path: Path) -> None:
    stop = TerminatedError(signal.SIGTERM)

    def write(piece: str) -> None:
        raise stop

    for read, into in ((typing("hello", "/exit"), write), (typing(stop), lambda piece: None)):
        with pytest.raises(TerminatedError):
            alone(path, read=read, write=into, manner=SHORT)


def test_an_empty_line_does_nothing(path: Path) -> None:
    written: list[str] = []
    assert alone(path, read=typing("", "   ", "/exit"), write=written.append) == []
    assert written == []


def test_help_and_what_is_no_command_list_the_commands(path: Path) -> None:
    written: list[str] = []
    read = typing("/help", "/hlep", "/exit")
    assert alone(path, read=read, write=written.append, ready=lambda: written.append("ready")) == []
    assert written == ["ready", HELP, f"(/hlep is no command)\n{HELP}"]


def test_a_path_is_a_message(path: Path) -> None:
    messages = alone(path, read=typing("/etc/hosts is what?", "/exit"), write=lambda _: None, manner=SHORT)
    assert messages[0] == user("/etc/hosts is what?")


def test_reset_forgets_what_was_said_but_not_the_system_prompt(path: Path, llama: LlamaCpp) -> None:
    manner = Manner(system="Be brief.", max_new_tokens=5)
    read = typing("The quick brown fox", "/reset", "hello", "/exit")
    messages = alone(path, read=read, write=lambda _: None, manner=manner)
    asked = [{"role": "system", "content": "Be brief."}, user("hello")]
    assert messages == [user("hello"), {"role": "assistant", "content": llama.chat(asked, max_new_tokens=5)}]


def test_the_system_prompt_stands_first_and_counts(path: Path, llama: LlamaCpp) -> None:
    asked = [{"role": "system", "content": "Be brief."}, user("hi")]
    with_it = answer(path, "hi", manner=Manner(system="Be brief.", max_new_tokens=12))
    assert with_it == llama.generate("<|begin|><|system|>Be brief.<|end|><|user|>hi<|end|><|assistant|>", 12)
    assert with_it == llama.chat(asked, max_new_tokens=12) != llama.chat([user("hi")], max_new_tokens=12)


REFUSING = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
ALL = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize("template", [ALL.replace("%}{{", "if m['role'] != 'system' %}{{"), REFUSING + ALL])
def test_a_template_without_a_system_prompt_begins_the_message_with_it(template: str, tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = template
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})
    said = answer(file, "hi", manner=Manner(system="Be brief.", max_new_tokens=5))
    assert said == answer(file, "Be brief.\nhi", manner=SHORT) != answer(file, "hi", manner=SHORT)


def test_a_template_that_changes_the_system_prompt_is_said(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = ALL.replace("'] }}", "'][:4] }}")
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})
    with pytest.raises(ConfigError, match="does not write the system prompt"):
        answer(file, "hi", manner=Manner(system="Be brief."))


def test_answers_are_the_likeliest_unless_a_temperature_is_given(path: Path, llama: LlamaCpp) -> None:
    greedy = llama.generate(llama.render([user("hi")]), 8)
    assert answer(path, "hi", manner=Manner(max_new_tokens=8, seed=3)) == greedy
    warm = [answer(path, "hi", manner=Manner(None, 3.0, seed, 8)) for seed in (1, 1, 2, 3)]
    assert warm[0] == warm[1]
    assert len({*warm, greedy}) > 2


def test_an_interrupted_answer_ends_alone_and_old_exchanges_are_forgotten(path: Path) -> None:
    written: list[str] = []

    def write(piece: str) -> None:
        written.append(piece)
        if len(written) == 2:
            raise KeyboardInterrupt

    messages = alone(
        path, read=typing("hello", "word " * 40, "word " * 40, "/exit"), write=write, manner=SHORT
    )
    assert "forgotten" in "".join(written)
    assert len(messages) < 6


def test_a_message_that_alone_is_too_long_is_said_and_forgotten(path: Path, llama: LlamaCpp) -> None:
    written: list[str] = []
    messages = alone(path, read=typing("hello " * 500, "hi", "/exit"), write=written.append, manner=SHORT)
    assert "exceed" in "".join(written)
    assert messages == [
        user("hi"),
        {"role": "assistant", "content": llama.chat([user("hi")], max_new_tokens=5)},
    ]
    with pytest.raises(ContextFullError):
        answer(path, "hello " * 500)


def test_a_chat_composes_what_the_model_reads_composed(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    file = write_gguf(tmp_path / "m.gguf", tiny_llama(), tokenizer, quantised={})
    apart = unicodedata.normalize("NFD", "naïve café")
    messages = alone(file, read=typing(apart, "/exit"), write=lambda _: None, manner=SHORT)
    assert messages[0]["content"] == "naïve café" != apart
    with LlamaCpp(file) as loaded:
        said = Conversation(loaded, Manner(system=apart, max_new_tokens=5)).say(apart, lambda _: None)
        asked = [{"role": "system", "content": "naïve café"}, user("naïve café")]
        assert said == loaded.chat(asked, max_new_tokens=5)


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"temperature": 11.0}, "--temperature"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**32 - 1}, "--seed"),  # llama.cpp would draw one of its own
        ({"max_new_tokens": 0}, "--max-tokens"),
    ],
)
def test_a_manner_out_of_range_is_refused(values: dict[str, float], option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        Manner(**values)  # type: ignore[arg-type]


def test_nothing_is_no_message_and_a_file_without_a_template_no_partner(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty"):
        answer(tmp_path / "none", " \n")
    bare = byte_level()
    bare.chat_template = None
    file = write_gguf(tmp_path / "bare.gguf", tiny_llama(), bare, quantised={})
    with pytest.raises(ModelError, match="no chat template"):
        answer(file, "hi")


def test_files_beside_each_other_hear_the_same_and_answer_under_their_names(
    path: Path, tmp_path: Path
) -> None:
    other = write_gguf(
        tmp_path / "n.gguf", tiny_llama(initializer_range=0.3), byte_level(), quantised={}, float_type="F32"
    )
    written: list[str] = []
    both = chat([path, other], read=typing("hello", "and then?", "/exit"), write=written.append, manner=SHORT)
    each = [
        alone(one, read=typing("hello", "and then?", "/exit"), write=lambda _: None, manner=SHORT)
        for one in (path, other)
    ]
    assert both == each
    assert each[0] != each[1]
    lines = "".join(written)
    assert lines.startswith(f"[m.gguf] {each[0][1]['content']}")
    assert f"[n.gguf] {each[1][3]['content']}" in lines


def test_reset_is_for_all_files(path: Path) -> None:
    both = chat([path, path], read=typing("hello", "/reset", "/exit"), write=lambda _: None, manner=SHORT)
    assert both == [[], []]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/m.gguf"], ["m.gguf"]),
        (["a/m.gguf", "b/m.gguf"], ["a/m.gguf", "b/m.gguf"]),
        (["x/a/m.gguf", "y/a/m.gguf", "n.gguf"], ["x/a/m.gguf", "y/a/m.gguf", "n.gguf"]),
        (["m.gguf", "m.gguf"], ["m.gguf (1)", "m.gguf (2)"]),
    ],
)
def test_files_are_told_apart_by_the_end_of_their_paths(paths: list[str], names: list[str]) -> None:
    assert labels([Path(one) for one in paths]) == names
