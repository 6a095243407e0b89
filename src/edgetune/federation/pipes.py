"""Messages between a run and its own worker processes: a JSON head and bytes, over pipes; nothing is unpickled."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from edgetune.core import errors
from edgetune.core.errors import EdgetuneError

LENGTHS = struct.Struct("<IQ")
"""Bytes of the head and of the body."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Args:
        kind: what it is.
        head: further values, as JSON has them.
        body: bytes, for example a frame of the server.
    """

    kind: str
    head: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""


def send(pipe: BinaryIO, message: Message) -> None:
    """Write a message.

    Raises:
        OSError: if the other side is gone.
    """
    head = json.dumps({"kind": message.kind, **message.head}).encode()
    pipe.write(LENGTHS.pack(len(head), len(message.body)) + head + message.body)
    pipe.flush()


def receive(pipe: BinaryIO) -> Message:
    """Wait for a message.

    Raises:
        EOFError: if the other side is gone.
    """
    lengths = LENGTHS.unpack(_exactly(pipe, LENGTHS.size))
    head = json.loads(_exactly(pipe, lengths[0]))
    return Message(head.pop("kind"), head, _exactly(pipe, lengths[1]))


def _exactly(pipe: BinaryIO, count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


def from_error(error: BaseException) -> Message:
    """Return an error as a message."""
    if isinstance(error, EdgetuneError):
        where = None if error.where is None else str(error.where)
        head = {"name": type(error).__name__, "what": error.what, "where": where, "hint": error.hint}
        return Message("error", head)
    return Message(
        "error", {"name": "", "what": f"{type(error).__name__}: {error}", "where": None, "hint": None}
    )


def to_error(message: Message) -> Exception:
    """Return the error of a message: of the class it was, or RuntimeError for a bug."""
    head = message.head
    made = getattr(errors, head["name"], None) if head["name"] else None
    if made is None:
        return RuntimeError(f"in a worker process: {head['what']}")
    error: EdgetuneError = made.__new__(made)
    EdgetuneError.__init__(error, head["what"], where=head["where"], hint=head["hint"])
    return error
