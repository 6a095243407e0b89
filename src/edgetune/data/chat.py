"""The tokenizer's own chat template as a prompt, with proof that it carries what a record says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edgetune.core.errors import ConfigError
from edgetune.core.template import HINT, Templates
from edgetune.data.chat_shape import ASKED, SAID, TAG, as_messages, find_shape, not_a_continuation
from edgetune.data.controls import Controls
from edgetune.data.records import Message, Record, Role
from edgetune.data.threads import around, probes, said_at
from edgetune.data.turns import Frame, Renderer, Turn, folded, plain_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256
"""Records that go to the rendering process at a time."""
_LAST_TAG = re.compile(rf"({TAG.pattern})(\s*)\Z")
"""A tag such as `<think>`, and the white space behind it, at the end of a prompt."""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """The tokenizer's own chat template: what was said before, one user turn and one assistant turn.

        user = instruction, or instruction + "\\n\\n" + context
        prompt = render(history, user, generation prompt);  prompt + response = render(history, user, assistant)

    The response ends with the first special token behind it (what follows the end of the turn is never generated); a
    template that marks no end gets the end-of-sequence token. Contents are given as text, or as parts
    (`[{"type": "text", "text": ...}]`) where the template reads only those. What the system says begins the first
    question where the template has no place for it. Every record must stand in its text as it
    is, outer white space aside. A response that the template rewrites (most drop reasoning from earlier turns) stands
    as it is between what the template puts before and after an answer. Where the prompt begins the answer (`<think>`),
    the response goes on from there. Of an earlier answer the template may leave out the thoughts, as it will in a chat.

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
        self._shape = shape = find_shape(self._templates)
        self._trail, end, stop = self._ended(shape.tail.partition(SAID)[2])
        ends = tuple(dict.fromkeys(text for text in (end, self._eos) if text))
        # Where the prompt ends with the header itself, in other white space, the model has no lead to say.
        lead = "" if shape.opening.strip() else _spoken(shape.lead, tokenizer)
        self.frame = Frame(lead, stop, ends)
        self._controls = Controls(tokenizer, ends)
        self._known: dict[tuple[Role, ...], list[str]] = {}

    def turns(self, records: Sequence[Record]) -> list[Turn]:
        return [
            turn
            for start in range(0, len(records), CHUNK)
            for turn in self._some(records[start : start + CHUNK])
        ]

    def _some(self, records: Sequence[Record]) -> list[Turn]:
        cleaned = [self.frame.without_own_end(record) for record in records]
        shown = [record if self._shape.hears else folded(record) for record in cleaned if not record.plain]
        wanted = []
        for record in shown:
            *before, user, said = as_messages(_talk(record), self._shape.parts)
            wanted += [([*before, user], True), ([*before, user, said], False)]
        texts = self._templates.render(wanted) if wanted else []
        frames = self._frames({_roles(record) for record in shown if record.history})
        made = iter(
            self._turn(record, texts[2 * at], texts[2 * at + 1], frames.get(_roles(record)))
            for at, record in enumerate(shown)
        )
        return [plain_turn(one, self._eos, self._controls) if one.plain else next(made) for one in cleaned]

    def _frames(self, wanted: set[tuple[Role, ...]]) -> dict[tuple[Role, ...], list[str]]:
        """Return what the template puts around the messages of conversations, by who speaks in them."""
        unknown = sorted(wanted - self._known.keys())
        asked = [as_messages(probes(roles), self._shape.parts) for roles in unknown]
        texts = self._templates.render([(messages, True) for messages in asked]) if asked else []
        for roles, text in zip(unknown, texts, strict=True):
            self._known[roles] = around(text) if isinstance(text, str) else []
        return self._known

    def _turn(
        self, record: Record, prompt: str | ConfigError, full: str | ConfigError, frame: Sequence[str] | None
    ) -> Turn:
        if not (isinstance(prompt, str) and isinstance(full, str)):
            failed = prompt if isinstance(prompt, ConfigError) else full
            raise ConfigError(getattr(failed, "what", ""), where=_name(record), hint=HINT)
        places = self._places(record, prompt) if frame is None else said_at(prompt, frame, _talk(record)[:-1])
        if places is None:
            what = "the chat template changes the instruction or the context, or leaves it out"
            what = what if frame is None else f"{what}, or what was said before"
            raise ConfigError(what, where=_name(record), hint=HINT)
        said = self._said(record, prompt, full)
        start = len(prompt) + len(said.lead)
        fields = (*places, (start, start + len(said.text)))
        response = said.lead + said.text + said.end
        quoted = self._controls.quoted(prompt + response, fields)
        return Turn(prompt, response, quoted, said.framed, said.opening)

    def _places(self, record: Record, prompt: str) -> list[tuple[int, int]] | None:
        asked = record.asked.strip()
        place = _place(prompt, asked, self._shape.prompt, ASKED)
        return None if place is None else [(place, place + len(asked))]

    def _said(self, record: Record, prompt: str, full: str) -> _Said:
        shape, said = self._shape, record.response.strip()
        if full.startswith(prompt):
            tail = full[len(prompt) :]
            at = _place(tail, said, shape.tail, SAID)
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
            raise not_a_continuation(_name(record))
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


def _talk(record: Record) -> tuple[Message, ...]:
    """Return all that is said in a record, its answer last."""
    return (*record.history, Message("user", record.asked), Message("assistant", record.response))


def _roles(record: Record) -> tuple[Role, ...]:
    return tuple(one.role for one in _talk(record)[:-1])


def _spoken(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a text as it reads in an answer: without special tokens."""
    if not text.strip():
        return ""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _name(record: Record) -> str:
    return f"record {record.instruction[:60]!r}"
