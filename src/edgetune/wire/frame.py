"""The frame around every payload: what it is, which method and base it belongs to, and a checksum."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from edgetune.core.errors import DigestError

MAGIC = b"ETN1"
HEADER = struct.Struct("<4sBB8s8sII")
"""Magic, kind, reserved (0), method, base, round, body length; a CRC-32 of everything follows the body."""
OVERHEAD = HEADER.size + 4
DOWN, UP, SCORES, CHOICE = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class Frame:
    """One message between server and device.

    Args:
        kind: DOWN (a state) or UP (a change); before a round SCORES (of a device) and CHOICE (of layers for it).
        method: 8 bytes that name the method, its settings and its directions.
        base: 8 bytes that name the base model and its tokenizer.
        round: the round it belongs to, in [0, 2^32).
        body: the encoded update and its metadata.
    """

    kind: int
    method: bytes
    base: bytes
    round: int
    body: bytes

    def encode(self) -> bytes:
        """Return the bytes to send: 34 of framing and the body."""
        head = HEADER.pack(MAGIC, self.kind, 0, self.method, self.base, self.round, len(self.body))
        return head + self.body + struct.pack("<I", zlib.crc32(head + self.body))

    @classmethod
    def decode(cls, payload: bytes, *, kind: int, method: bytes, base: bytes) -> Frame:
        """Check and open a message.

        Raises:
            DigestError: if it is damaged, cut short, of another kind, or belongs to another method or base model.
        """
        if len(payload) < OVERHEAD or payload[:4] != MAGIC:
            raise DigestError("not an edgetune message")
        _, got_kind, reserved, got_method, got_base, round, length = HEADER.unpack_from(payload)
        if len(payload) != OVERHEAD + length:
            raise DigestError(f"the message has {len(payload)} bytes instead of {OVERHEAD + length}")
        if zlib.crc32(payload[:-4]) != struct.unpack("<I", payload[-4:])[0]:
            raise DigestError("the message is damaged: its checksum does not match")
        if reserved:
            raise DigestError("the message is of a later format", hint="update edgetune")
        if got_kind != kind:
            raise DigestError("the message travels in the wrong direction")
        if got_method != method:
            raise DigestError("the message belongs to another method, other settings or another seed")
        if got_base != base:
            raise DigestError(
                "the message belongs to another base model or tokenizer",
                hint="install the same base on all devices",
            )
        return cls(got_kind, got_method, got_base, round, payload[HEADER.size : -4])
