"""A message between hosts as one blob: a length, a JSON head, and the bytes of the local engine's message."""

from __future__ import annotations

import json
import struct

from edgetune.core.errors import DigestError
from edgetune.federation.pipes import Message

LENGTH = struct.Struct("<I")
"""Bytes of the head."""
LONGEST = 1 << 20
"""Bytes of a head."""


def seal(message: Message) -> bytes:
    """Return a message as bytes."""
    head = json.dumps({"kind": message.kind, **message.head}).encode()
    return LENGTH.pack(len(head)) + head + message.body


def unseal(data: bytes) -> Message:
    """Return the message of some bytes, whoever made them.

    Raises:
        DigestError: if they are none.
    """
    try:
        (length,) = LENGTH.unpack_from(data)
        if length > min(LONGEST, len(data) - LENGTH.size):
            raise ValueError
        head = json.loads(data[LENGTH.size : LENGTH.size + length])
        kind = head.pop("kind")
        if not isinstance(kind, str):
            raise TypeError
    except (struct.error, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise DigestError("the message is no envelope of edgetune's") from error
    return Message(kind, head, data[LENGTH.size + length :])
