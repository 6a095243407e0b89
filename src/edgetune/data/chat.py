"""The tokenizer's own chat template as a prompt, with proof that it carries what a record says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgetune.core.errors import ConfigError
from edgetune.core.template import HINT, Templates
from edgetune.data.controls import Controls
from edgetune.data.encode import common_prefix
from edgetune.data.records import Record
from edgetune.data.turns import Frame, Renderer, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256
"""Records that go to the rendering process at a time."""
_ASKED, _SAID = "\ue000\ue001\ue002", "\ue003\ue004\ue005"
"""What no template and no record says, to see where a template puts a question and an answer."""
_TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_LAST_TAG = re.compile(rf"({_TAG.pattern})(\s*)\Z")
"""A tag such as `<think>`, and the white space behind it, at the end of a prompt."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The tokenizer's own chat template: one user turn and one assistant turn.

        user = instruction, or instruction + "\\n\\n" + context
        prompt = render(user, generation prompt);  prompt + response = render(user, assistant)

    The response ends with the first special token behind it (what follows the end of the turn is never generated); a
    template that marks no end gets the end-of-sequence token. Contents are given as text, or as parts
    (`[{"type": "text", "text": ...}]`) where the template reads only those. Every record must stand in its text as it
    is, outer white space aside. A response that the template rewrites (most drop reasoning from earlier turns) stands
    as it is between what the template puts before and after an answer. Where the prompt begins the answer (`<think>`),
    the response goes on from there.

    Raises:
        ConfigError: the tokenizer has no chat template; it fails, does not end, or needs too much memory; the text of
            a record is not in what it renders; or its full text does not start with its prompt, so that what is
            trained on is not what is asked for. The message names the record.
    """

    name: ClassVar[str] = "chat"
    add_special_tokens: ClassVar[bool] = False

    def renderer(self, tokenizer: PreTrainedTokenizerBase) -> AbstractContextManager[Renderer]:
        """Open a renderer: a process that renders the template."""
        return _open(tokenizer)


@contextmanager
def _open(tokenizer: PreTrainedTokenizerBase) -> Iterator[Renderer]:
    with Templates(template_of(tokenizer), tokenizer.special_tokens_map) as templates:
        yield _Chat(templates, tokenizer)


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the chat template that transformers would use: the only one, or the one named `default`.

    Raises:
        ConfigError: there is none.
    """
    template: Any = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise ConfigError("the tokenizer has no chat template", hint='set data.prompt to "alpaca"')
    return template


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a template makes of a question and an answer that it cannot know.

    Args:
        parts: whether the contents of the user and of the assistant are given as parts.
        prompt: the prompt with the question in it.
        tail: what follows, in a finished turn, what the turn shares with the prompt; the answer is in it.
        opening: the end of the prompt that a finished turn does not have, mostly nothing.
        asks: whether the template has a generation prompt.
    """

    parts: tuple[bool, bool]
    prompt: str
    tail: str
    opening: str
    asks: bool

    @property
    def lead(self) -> str:
        return self.tail.partition(_SAID)[0]

    @property
    def follows(self) -> bool:
        """Whether an answer follows the prompt as it stands, though a finished turn does not start with the prompt.

        The prompt ends with the turn's own header in other white space, with a block that is closed again (an empty
        thought), or with words; not with one opened tag, which an answer would have to close.
        """
        return self.opening.strip() == self.lead.strip() or (
            not self.lead.strip() and len(_TAG.findall(self.opening)) != 1
        )


@dataclass(frozen=True, slots=True)
class _Said:
    """What stands behind a prompt.

    Args:
        text: of the response, as the record has it.
        end: what the template puts behind it, up to the end of the turn.
        lead: what the template puts before it.
        opening: beginning of the response that the prompt says.
        framed: the template would have written another text.
    """

    text: str
    end: str
    lead: str = ""
    opening: str = ""
    framed: bool = False


class _Chat:
    def __init__(self, templates: Templates, tokenizer: PreTrainedTokenizerBase) -> None:
        self._templates = templates
        self._added = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())} - {
            ""
        }
        self._eos = str(tokenizer.eos_token or "")
        self._shape = shape = self._find_shape()
        self._trail, end, stop = self._ended(shape.tail.partition(_SAID)[2])
        ends = tuple(dict.fromkeys(text for text in (end, self._eos) if text))
        # Where the prompt ends with the header itself, in other white space, the model has no lead to say.
        lead = "" if shape.opening.strip() else _spoken(shape.lead, tokenizer)
        self.frame = Frame(lead, stop, ends)
        self._controls = Controls(tokenizer, ends)

    def turns(self, records: Sequence[Record]) -> list[Turn]:
        return [
            turn
            for start in range(0, len(records), CHUNK)
            for turn in self._some(records[start : start + CHUNK])
        ]

    def _some(self, records: Sequence[Record]) -> list[Turn]:
        cleaned = [self.frame.without_own_end(record) for record in records]
        wanted = []
        for record in cleaned:
            user, said = self._messages(_asked(record), record.response, self._shape.parts)
            wanted += [([user], True), ([user, said], False)]
        texts = self._templates.render(wanted)
        return [self._turn(record, *texts[2 * at : 2 * at + 2]) for at, record in enumerate(cleaned)]

    def _find_shape(self) -> _Shape:
        """Try contents as text and as parts until both contents stand in what is rendered."""
        reason = ConfigError("the chat template leaves out what the user or the assistant says", hint=HINT)
        for number, parts in enumerate(((False, False), (True, True), (True, False), (False, True))):
            user, said = self._messages(_ASKED, _SAID, parts)
            texts = self._templates.render([([user], True), ([user, said], False), ([user], False)])
            failed = [text for text in texts[:2] if not isinstance(text, str)]
            if failed:
                # A refusal of plain text says more than that of parts.
                reason = failed[0] if number == 0 else reason
                continue
            prompt, full, unasked = map(str, texts)
            if _ASKED in prompt and _ASKED in full and _SAID in full:
                return _shape(parts, prompt, full, asks=prompt != unasked)
        raise reason

    @staticmethod
    def _messages(asked: str, said: str, parts: tuple[bool, bool]) -> tuple[dict[str, Any], dict[str, Any]]:
        contents = [
            [{"type": "text", "text": text}] if as_parts else text
            for text, as_parts in zip((asked, said), parts, strict=True)
        ]
        return {"role": "user", "content": contents[0]}, {"role": "assistant", "content": contents[1]}

    def _turn(self, record: Record, prompt: str | ConfigError, full: str | ConfigError) -> Turn:
        if not (isinstance(prompt, str) and isinstance(full, str)):
            failed = prompt if isinstance(prompt, ConfigError) else full
            raise ConfigError(getattr(failed, "what", ""), where=_name(record), hint=HINT)
        asked = _asked(record).strip()
        place = _place(prompt, asked, self._shape.prompt, _ASKED)
        if place is None:
            what = "the chat template changes the instruction or the context, or leaves it out"
            raise ConfigError(what, where=_name(record), hint=HINT)
        said = self._said(record, prompt, full)
        start = len(prompt) + len(said.lead)
        fields = ((place, place + len(asked)), (start, start + len(said.text)))
        response = said.lead + said.text + said.end
        quoted = self._controls.quoted(prompt + response, fields)
        return Turn(prompt, response, quoted, said.framed, said.opening)

    def _said(self, record: Record, prompt: str, full: str) -> _Said:
        shape, said = self._shape, record.response.strip()
        if full.startswith(prompt):
            tail = full[len(prompt) :]
            at = _place(tail, said, shape.tail, _SAID)
            if at is not None:
                return _Said(said, self._ended(tail[at + len(said) :])[0], lead=tail[:at])
            begun, rest = _continued(prompt, said)
            if begun and tail.startswith(rest):
                return _Said(rest, self._ended(tail[len(rest) :])[0], opening=begun)
            # A lead of words is left to templates without a generation prompt: there the model must say it itself.
            lead = (
                shape.lead
                if not (begun or shape.opening) and (shape.lead.isspace() or not shape.asks)
                else ""
            )
            return _Said(rest, self._trail, lead=lead, opening=begun, framed=True)
        if not (
            shape.opening
            and prompt.endswith(shape.opening)
            and full.startswith(prompt[: -len(shape.opening)])
        ):
            raise _not_a_continuation(record)
        begun, rest = _continued(prompt, said)
        if not (begun or shape.follows):
            what = f"the chat template begins every answer with {shape.opening.strip()!r}, this response does not"
            raise ConfigError(what, where=_name(record), hint=HINT)
        return _Said(rest, self._trail, opening=begun, framed=said not in full)

    def _ended(self, rest: str) -> tuple[str, str, str]:
        """Cut what follows a response after its first special token; return it, the token, and plain text before it."""
        found = [(at, -len(token)) for token in self._added if (at := rest.find(token)) >= 0]
        if found:
            at, length = min(found)
            return rest[: at - length], rest[at : at - length], rest[:at].strip()
        return rest + self._eos, self._eos, rest.strip()


def _shape(parts: tuple[bool, bool], prompt: str, full: str, *, asks: bool) -> _Shape:
    begun = prompt[: common_prefix(prompt, full)]
    if _ASKED not in begun:
        raise _not_a_continuation(None)
    return _Shape(parts, prompt, full[len(begun) :], prompt[len(begun) :], asks)


def _not_a_continuation(record: Record | None) -> ConfigError:
    return ConfigError(
        "the chat template renders a finished turn that does not start with its prompt",
        where=None if record is None else _name(record),
        hint=HINT,
    )


def _place(text: str, wanted: str, shape: str, probe: str) -> int | None:
    """Return where a content stands in a rendered text, None if it does not.

    A word of the template itself, which the text of the probe has as well, does not count.
    """
    before = shape.partition(probe)[0]
    if text.startswith(before + wanted):
        return len(before)
    return text.find(wanted) if text.count(wanted) > shape.count(wanted) else None


def _continued(prompt: str, said: str) -> tuple[str, str]:
    """Divide a response that begins with the tag that the prompt ends with, into what the prompt says and the rest."""
    tag = _LAST_TAG.search(prompt)
    if tag is None or not said.startswith(tag[1]):
        return "", said
    rest = said[len(tag[1]) :]
    rest = rest.lstrip() if tag[2] else rest
    return said[: len(said) - len(rest)], rest


def _asked(record: Record) -> str:
    return f"{record.instruction}\n\n{record.context}" if record.context else record.instruction


def _spoken(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text as it reads in an answer: without special tokens."""
    if not text.strip():
        return ""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _name(record: Record) -> str:
    return f"record {record.instruction[:60]!r}"
