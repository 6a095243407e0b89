"""Where the messages of a conversation stand in what a chat template makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgetune.data.records import Message, Role

_OPEN, _CLOSE, _FIRST = "\ue009", "\ue00a", 0xE100
"""What no template and no record says, around the number of a message."""
_THOUGHT = "</think>"
"""Ends what templates leave out of earlier answers."""


def probes(roles: Sequence[Role]) -> list[Message]:
    """Return a conversation whose messages no template can know."""
    return [Message(role, f"{_OPEN}{chr(_FIRST + at)}{_CLOSE}") for at, role in enumerate(roles)]


def around(text: str) -> list[str]:
    """Return what a template puts before, between and behind the messages of `probes`, in order.

    Args:
        text: what it makes of them.

    Returns:
        One more than there are messages; nothing if they do not all stand there once, in their order.
    """
    pieces, numbers = [""], list[int]()
    for part in text.split(_OPEN):
        at = part.find(_CLOSE)
        if at == 1:
            numbers.append(ord(part[0]) - _FIRST)
            pieces.append(part[at + 1 :])
        else:
            pieces[-1] += part
    return pieces if numbers == list(range(len(numbers))) and numbers else []


def said_at(text: str, frame: Sequence[str], talk: Sequence[Message]) -> list[tuple[int, int]] | None:
    """Find the messages of a conversation in what a template makes of it.

    Every message must stand there as it is, outer white space aside, each behind the one before it; of an assistant's
    the template may leave out the thoughts. Where all between them is what the template puts around any messages, the
    places are certain; else each is the first behind the one before.

    Args:
        text: what the template makes of the messages.
        frame: `around` of the same speakers; nothing where that is not known.
        talk: the messages.

    Returns:
        [start, end) of each, or None where one is missing.
    """
    if len(frame) == len(talk) + 1:
        exact = _between(text, frame, talk)
        if exact is not None:
            return exact
    places, at = list[tuple[int, int]](), 0
    for one in talk:
        found = next(((start, said) for said in _forms(one) if (start := text.find(said, at)) >= 0), None)
        if found is None:
            return None
        start, said = found
        at = start + len(said)
        places.append((start, at))
    return places


def _between(text: str, frame: Sequence[str], talk: Sequence[Message]) -> list[tuple[int, int]] | None:
    if not text.startswith(frame[0]):
        return None
    places, at = list[tuple[int, int]](), len(frame[0])
    for one, behind in zip(talk, frame[1:], strict=True):
        said = next((form for form in _forms(one) if text.startswith(form + behind, at)), None)
        if said is None:
            return None
        places.append((at, at + len(said)))
        at += len(said) + len(behind)
    return places if at == len(text) else None


def _forms(message: Message) -> Iterator[str]:
    """Yield a message as a template may show it."""
    yield message.text
    yield message.text.strip()
    if message.role == "assistant" and _THOUGHT in message.text:
        rest = message.text.rsplit(_THOUGHT, 1)[1]
        yield rest
        yield rest.strip()
