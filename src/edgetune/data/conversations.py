"""Conversations as data sets store them, as one record for every answer in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgetune.core.errors import DataError, nearest
from edgetune.data.records import Message, Record, Role

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Names of speakers."""
LONGEST_HISTORY = 32
"""Messages before an instruction that are kept, besides the system message: the last ones."""
_KEYS = (("role", "content"), ("from", "value"))
"""Names of the speaker and of what is said."""


def records_of(messages: object, place: str, category: str = "", system: str = "") -> list[Record]:
    """Return one record an answer, with what was said before it as its history.

    Messages of one speaker that follow each other are one message, with a blank line between. What an assistant says
    before anybody asked stays out, and so does a question without an answer. An answer whose `weight` is 0 is history
    alone, as in OpenAI's fine-tuning format. A history has at most `LONGEST_HISTORY` messages besides the system's: of
    a longer one the last.

    Args:
        messages: a list of objects with `role` and `content`, or with `from` and `value`; a content is a text, or a
            list of parts that are texts.
        place: where it stands, for error messages.
        category: of all its records.
        system: a system message beside the list; one in the list comes behind it.

    Returns:
        Nothing if there is no answer, or only empty ones.

    Raises:
        DataError: it is no such list, a speaker is unknown, a system message stands in the middle, or a content is no
            text. The message names the place.
    """
    said = _alternating(_read(messages, place))
    first = [_Said(Message("system", system))] if system.strip() else []
    if said and said[0].message.role == "system":
        first = _alternating([*first, said.pop(0)])
    if any(one.message.role == "system" for one in said):
        what = "a system message stands in the middle of a conversation"
        raise DataError(what, where=place, hint="put it first, or leave such conversations out")
    if said and said[0].message.role == "assistant":
        del said[0]
    opening, turns = [one.message for one in first], [one.message for one in said[: len(said) // 2 * 2]]
    key = _key([*opening, *turns]) if len(turns) > 2 else ""
    return [
        Record(
            turns[at].text,
            "",
            turns[at + 1].text,
            category,
            (*opening, *turns[max(0, at - LONGEST_HISTORY) : at]),
            key,
        )
        for at in range(0, len(turns), 2)
        if turns[at + 1].text.strip() and said[at + 1].trained
    ]


@dataclass(frozen=True, slots=True)
class _Said:
    """A message, and whether it may be trained on where it is an answer."""

    message: Message
    trained: bool = True


def _read(messages: object, place: str) -> list[_Said]:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise DataError(f"a conversation is a list of messages, not {type(messages).__name__}", where=place)
    return [
        _Said(_message(one, f"{place}, message {number}"), _weighs(one))
        for number, one in enumerate(messages, start=1)
    ]


def _weighs(one: object) -> bool:
    """Say whether a message has a weight, which is 1 where none is given."""
    return not (isinstance(one, Mapping) and one.get("weight") is not None and one["weight"] == 0)


def _message(one: object, place: str) -> Message:
    present = one if isinstance(one, Mapping) else {}
    for who, what in _KEYS:
        if isinstance(present.get(who), str) and what in present:
            name = str(present[who]).strip().lower()
            if name not in ROLES:
                near = nearest(name, ROLES)
                hint = f"did you mean {near!r}?" if near else "leave such conversations out"
                known = ", ".join(ROLES)
                raise DataError(f"an unknown speaker {name[:60]!r}; known: {known}", where=place, hint=hint)
            return Message(ROLES[name], _content(present[what], place))
    keys = ", ".join(sorted(map(str, present))[:10]) or type(one).__name__
    what = f"a message has role and content, or from and value; this one has: {keys}"
    raise DataError(what, where=place)


def _content(content: object, place: str) -> str:
    if isinstance(content, str):
        return checked_text(content, "a message", place)
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if parts and all(isinstance(text, str) for text in texts):
        return checked_text("".join(map(str, texts)), "a message", place)
    kinds = {str(part.get("type"))[:40] for part in parts if isinstance(part, Mapping)} - {"text"}
    kind = ", ".join(sorted(kinds)) or type(content).__name__
    raise DataError(f"a message holds {kind}, not text", where=place, hint="leave such conversations out")


def checked_text(text: str, what: str, place: str) -> str:
    """Return a text that can be written as UTF-8.

    Raises:
        DataError: it cannot.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{what} is not valid Unicode text ({error.reason})", where=place) from error
    return text


def _alternating(said: Sequence[_Said]) -> list[_Said]:
    """Make one message of those that one speaker says in a row; it weighs nothing if one of them does."""
    joined = list[_Said]()
    for one in said:
        last = joined[-1] if joined else None
        if last is not None and last.message.role == one.message.role:
            text = f"{last.message.text}\n\n{one.message.text}"
            joined[-1] = _Said(Message(one.message.role, text), last.trained and one.trained)
        else:
            joined.append(one)
    return joined


def _key(messages: Sequence[Message]) -> str:
    said = json.dumps([[one.role, one.text] for one in messages])
    return hashlib.blake2s(said.encode("utf-8"), digest_size=12).hexdigest()
