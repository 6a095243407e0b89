"""What a chat template makes of contents that it cannot know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgetune.core.errors import ConfigError
from edgetune.core.template import HINT, Templates
from edgetune.data.encode import common_prefix
from edgetune.data.records import Message

ASKED, SAID, HEARD = "\ue000\ue001\ue002", "\ue003\ue004\ue005", "\ue006\ue007\ue008"
"""What no template and no record says, to see where a template puts a question, an answer and the system's words."""
TAG = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
"""A tag such as `<think>`."""


@dataclass(frozen=True, slots=True)
class ChatShape:
    """What a template makes of a question and an answer that it cannot know.

    Args:
        parts: whether the contents of the user and of the assistant are given as parts.
        prompt: the prompt with the question in it.
        tail: what follows, in a finished turn, what the turn shares with the prompt; the answer is in it.
        opening: the end of the prompt that a finished turn does not have, mostly nothing.
        asks: whether the template has a generation prompt.
        hears: whether what the system says stands in what is rendered.
    """

    parts: tuple[bool, bool]
    prompt: str
    tail: str
    opening: str
    asks: bool
    hears: bool

    @property
    def lead(self) -> str:
        """What a finished turn puts before the answer and the prompt does not say."""
        return self.tail.partition(SAID)[0]

    @property
    def follows(self) -> bool:
        """Whether an answer follows the prompt as it stands, though a finished turn does not start with the prompt.

        The prompt ends with the turn's own header in other white space, with a block that is closed again (an empty
        thought), or with words; not with one opened tag, which an answer would have to close.
        """
        return self.opening.strip() == self.lead.strip() or (
            not self.lead.strip() and len(TAG.findall(self.opening)) != 1
        )


def find_shape(templates: Templates) -> ChatShape:
    """Try contents as text and as parts until question and answer stand in what is rendered.

    Raises:
        ConfigError: they never do, or a finished turn does not start with its prompt.
    """
    reason = ConfigError("the chat template leaves out what the user or the assistant says", hint=HINT)
    system, user, said = Message("system", HEARD), Message("user", ASKED), Message("assistant", SAID)
    for number, parts in enumerate(((False, False), (True, True), (True, False), (False, True))):
        asked, heard = as_messages((user,), parts), as_messages((system, user), parts)
        wanted = [(asked, True), (as_messages((user, said), parts), False), (asked, False), (heard, True)]
        texts = templates.render(wanted)
        failed = [text for text in texts[:2] if not isinstance(text, str)]
        if failed:
            # A refusal of plain text says more than that of parts.
            reason = failed[0] if number == 0 else reason
            continue
        prompt, full, unasked, begun = map(str, texts)
        if ASKED in prompt and ASKED in full and SAID in full:
            hears = isinstance(texts[3], str) and 0 <= begun.find(HEARD) < begun.find(ASKED)
            return _shape(parts, prompt, full, asks=prompt != unasked, hears=hears)
    raise reason


def _shape(parts: tuple[bool, bool], prompt: str, full: str, *, asks: bool, hears: bool) -> ChatShape:
    begun = prompt[: common_prefix(prompt, full)]
    if ASKED not in begun:
        raise not_a_continuation(None)
    return ChatShape(parts, prompt, full[len(begun) :], prompt[len(begun) :], asks, hears)


def not_a_continuation(where: str | None) -> ConfigError:
    """Return the error about a template whose prompt is not the beginning of the whole."""
    what = "the chat template renders a finished turn that does not start with its prompt"
    return ConfigError(what, where=where, hint=HINT)


def as_messages(talk: Sequence[Message], parts: tuple[bool, bool]) -> list[dict[str, Any]]:
    """Return messages as a template reads them.

    Args:
        talk: what is said.
        parts: whether contents of the others and of the assistant are parts instead of text.
    """
    return [
        {
            "role": one.role,
            "content": [{"type": "text", "text": one.text}] if parts[one.role == "assistant"] else one.text,
        }
        for one in talk
    ]
