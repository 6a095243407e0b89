"""Templates in their process against transformers' own rendering, and every way a template can fail."""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edgetune.core.errors import ConfigError
from edgetune.core.template import LARGEST, TemplateError, Templates

ASKED = [{"role": "user", "content": "a < b & 'c' \n\u4e2d \u00e9"}]
TALK = [{"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "yes"}]
LIKE_OURS = {
    "chatml": "{% for m in messages %}\n  <|{{ m.role }}|>{{ m['content'] | trim }}\n{% endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ bos_token }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "undefined": "{{ tools }}{{ documents is none }}{{ nothing is defined }}{{ add_generation_prompt }}",
    "macro": "{% macro say(m) %}[{{ m.content | upper }}]{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    "strings": "{{ messages[0].content.split('&')[-1].lstrip() }}{{ 'x' * 3 }}",
}


@pytest.mark.parametrize("name", LIKE_OURS)
def test_texts_are_those_that_transformers_renders(name: str) -> None:
    source = LIKE_OURS[name]
    wanted = [(ASKED, True), (ASKED, False), (TALK, False)]
    with Templates(source, {"bos_token": "<s>"}) as templates:
        found = templates.render(wanted)
        assert templates.render(wanted[:1]) == found[:1]
    for (messages, generation), text in zip(wanted, found, strict=True):
        expected, _ = render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=generation, bos_token="<s>"
        )
        assert [text] == expected


def test_the_day_is_no_matter_of_the_clock() -> None:
    source = "{{ strftime_now('%d %b %Y') }}"
    with Templates(source, {}) as templates:
        assert templates.render([(ASKED, True)]) == ["26 Jul 2024"]
    with Templates(source, {}, day=date(2001, 2, 3)) as templates:
        assert templates.render([(ASKED, True)]) == ["03 Feb 2001"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include 'other' %}", "no loader"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('only system turns') }}", "only system turns"),
        ("{{ messages[9].role }}", "UndefinedError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ("\ud800", "UnicodeEncodeError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{% set ns = namespace(_x=1) %}", "SecurityError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
        ("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "RecursionError"),
        (f"{{{{ 'ab' * {LARGEST} }}}}", f"{2 * LARGEST} characters"),
    ],
)
def test_a_template_that_fails_says_why_and_the_next_conversation_is_rendered_all_the_same(
    source: str, reason: str
) -> None:
    with Templates(source, {}) as templates:
        for _ in range(2):
            (failure,) = templates.render([(ASKED, True)])
            assert isinstance(failure, ConfigError)
            assert reason in str(failure)
            assert "data.prompt" in str(failure)
            assert len(str(failure)) < 400


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space of a process")
@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ '%010000000000d' % 1 }}",
        "{% set ns = namespace(x='abcdefgh') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_memory_is_limited(source: str) -> None:
    with Templates(source, {}) as templates:
        (failure,) = templates.render([(ASKED, True)])
    assert "needs more than" in str(failure)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 9) }}",
    ],
)
def test_a_template_that_does_not_end_is_stopped(source: str) -> None:
    with Templates(source, {}) as templates, pytest.raises(TemplateError, match="does not end"):
        templates.render([(ASKED, True)])


def test_one_conversation_in_many_may_fail() -> None:
    source = (
        "{% if 'bad' in messages[0].content %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}"
    )
    rows: list[Any] = [([{"role": "user", "content": text}], False) for text in ("good", "bad", "\u2028")]
    with Templates(source, {}) as templates:
        first, second, third = templates.render(rows)
    assert (first, third) == ("good", "\u2028")
    assert isinstance(second, TemplateError)


def test_files_of_the_working_folder_are_no_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    (tmp_path / "jinja2.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with Templates("{{ messages[0].role }}", {}) as templates:
        assert templates.render([(ASKED, True)]) == ["user"]


def test_without_an_interpreter_it_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TemplateError, match="no process"):
        Templates("x", {})
