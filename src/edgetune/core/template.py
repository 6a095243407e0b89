"""Chat templates, rendered in a process of their own: they are programs of strangers that may loop, grow or crash."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from types import TracebackType
from typing import Any, BinaryIO

from edgetune.core.errors import ConfigError
from edgetune.core.limited import allow, limit, ran_out_of_time, start

SECONDS = 1
"""Processor seconds that one conversation may take (up to one more, which is the grain of the system's limit)."""
MEMORY = 1 << 29
"""Bytes of address space of the rendering process, where the system enforces them (Linux does)."""
LARGEST = 8_000_000
"""Characters that one rendered conversation may have."""
DAY = date(2024, 7, 26)
"""What `strftime_now` says, so that a rendered record depends on no clock; the day that Llama's own templates fall back
to."""

Conversation = tuple[Sequence[Mapping[str, Any]], bool]
"""Messages, and whether the generation prompt is wanted."""


class TemplateError(ConfigError):
    """A chat template cannot render a conversation."""


class Templates:
    """A chat template in a process that renders conversations; a context manager.

    The environment is that of transformers' `apply_chat_template`: a sandbox with `trim_blocks`, `lstrip_blocks`, loop
    controls, generation blocks, `tojson`, `raise_exception` and `strftime_now`. Time, memory and length of the result
    are limited, and no failure of the template reaches this process.

    Args:
        template: Jinja source.
        variables: what the template sees beside the messages: the special tokens by role (`bos_token`, ...).
        day: what `strftime_now` says.

    Raises:
        TemplateError: no interpreter can be started.
    Cost: 0.1 s to start; then about 0.1 ms a conversation, and some 15 MB in the other process.
    """

    def __init__(self, template: str, variables: Mapping[str, Any], *, day: date = DAY) -> None:
        try:
            self._process = start("edgetune.core.template", "serve")
        except OSError as error:
            raise TemplateError(f"no process to render the chat template: {error.strerror}") from error
        self._first: Any = {"template": template, "variables": dict(variables), "day": day.isoformat()}

    def __enter__(self) -> Templates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process; safe to call twice."""
        self._process.kill()
        with contextlib.suppress(OSError):
            self._process.communicate()

    def render(self, conversations: Sequence[Conversation]) -> list[str | TemplateError]:
        """Return the text of each conversation, or why it has none.

        Raises:
            TemplateError: the process had to be stopped, so that nothing more can be rendered.
        """
        request = self._first or {}
        request["conversations"] = [[list(messages), generation] for messages, generation in conversations]
        self._first = None
        answer = b""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None and self._process.stdout is not None:
                self._process.stdin.write(json.dumps(request, default=str).encode("ascii") + b"\n")
                self._process.stdin.flush()
                answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            raise TemplateError(f"the chat template {self._end()}", hint=HINT)
        return [text if error is None else _refusal(error) for text, error in json.loads(answer)]

    def _end(self) -> str:
        code = self._process.wait()
        if ran_out_of_time(code):
            return f"does not end: stopped after {SECONDS} s of computing on one record"
        return f"needs more than {MEMORY >> 20} MB, or breaks the interpreter"


HINT = 'correct the template, or set data.prompt to "alpaca"'


def _refusal(why: str) -> TemplateError:
    return TemplateError(f"the chat template cannot render a record: {why}", hint=HINT)


def serve() -> None:
    """Answer requests on standard input until it ends: the other process."""
    limit(MEMORY)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    first = json.loads(source.readline())
    render = _renderer(first["template"], first["variables"], date.fromisoformat(first["day"]))
    request: Any = first
    while True:
        answers = [_answer(render, messages, wanted) for messages, wanted in request["conversations"]]
        _send(sink, answers)
        line = source.readline()
        if not line:
            return
        request = json.loads(line)


def _answer(
    render: Callable[[Any, bool], str], messages: Any, generation: bool
) -> tuple[str | None, str | None]:
    allow(SECONDS)
    try:
        text = render(messages, generation)
        text.encode("utf-8")
    except MemoryError:
        return None, f"it needs more than {MEMORY >> 20} MB"
    except Exception as error:  # a template may raise whatever it likes
        line = next(iter(str(error).splitlines()), "")[:200]
        return None, f"{type(error).__name__}: {line}" if line else type(error).__name__
    if len(text) > LARGEST:
        return None, f"the text has {len(text)} characters, more than {LARGEST}"
    return text, None


def _send(sink: BinaryIO, answers: Any) -> None:
    sink.write(json.dumps(answers).encode("ascii") + b"\n")
    sink.flush()


def _renderer(source: str, variables: dict[str, Any], day: date) -> Callable[[Any, bool], str]:
    """Compile a template; where that fails, every conversation is refused with the reason."""
    allow(SECONDS)
    try:
        template = _environment(day).from_string(source)
    except Exception as error:  # what the parser and Python's compiler raise
        failure = error

        def refuse(messages: Any, generation: bool) -> str:
            raise failure

        return refuse
    return lambda messages, generation: str(
        template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=generation, **variables
        )
    )


def _environment(day: date) -> Any:
    import jinja2.ext
    from jinja2.exceptions import TemplateError as JinjaError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise JinjaError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation(), jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": day.strftime,
        "namespace": _namespace(),
    }
    return environment


def _generation() -> Any:
    """Return the extension for `{% generation %} ... {% endgeneration %}`: the text is what stands inside."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - jinja2 reads a plain set

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Callable[[], str]) -> str:
            return caller()

    return Generation


def _namespace() -> Callable[..., Any]:
    """Return `namespace` without names that lead into the interpreter."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    def check(name: object) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a template may not set {name!r}")

    class Attributes(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    def namespace(*given: Any, **named: Any) -> Namespace:
        values = dict(*given, **named)
        for name in values:
            check(name)
        return Attributes(values)

    return namespace
