"""What a device sends up in a round: who it is, which message it answers, what its steps were like, and the change."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2s

import numpy as np

from edgetune.core.errors import DigestError
from edgetune.core.keys import key_id, pool_key
from edgetune.core.update import Contribution, Update
from edgetune.wire import Codec

HEAD = struct.Struct("<8sI")
"""The message that is answered, and the device."""
REPORT = struct.Struct("<IfH")
"""Examples, mean loss, dropped steps."""


def binding(method_digest: str, base_digest: str, seed: int = 0) -> tuple[bytes, bytes]:
    """Return the two 8-byte names that every frame carries: what is tuned and how, and on which base.

        method = BLAKE2s(method digest || id of the direction key of the seed),   base = first bytes of its digest

    Slopes are along the directions of one key, so that a device of another seed takes part in another run.
    """
    tuning = blake2s(f"{method_digest} {key_id(pool_key(seed))}".encode(), digest_size=8).digest()
    return tuning, bytes.fromhex(base_digest)[:8]


def ticket(payload: bytes) -> bytes:
    """Name a message of the server by 8 bytes, which its reply carries: it counts in that round of that run only."""
    return blake2s(payload, digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Reply:
    """The body of a device's message.

        ticket (8 bytes), device (uint32), examples (uint32), mean loss (float32), dropped steps (uint16), change

    Args:
        answers: `ticket` of the server's message.
        content: what the device contributes.
    """

    answers: bytes
    content: Contribution

    def encode(self, codec: Codec) -> bytes:
        """Return the bytes."""
        one = self.content
        report = REPORT.pack(one.examples, np.float32(one.loss), min(one.dropped, 0xFFFF))
        return HEAD.pack(self.answers, one.device) + report + codec.encode(one.update)

    @classmethod
    def decode(cls, body: bytes, codec: Codec, *, like: Update) -> Reply:
        """Read the bytes.

        Args:
            body: a frame's body.
            codec: of the method.
            like: the server's state; dense changes must have its names, shapes and types.

        Raises:
            DigestError: if they are too short, or the change is no change of that state.
        """
        start = HEAD.size + REPORT.size
        if len(body) < start:
            raise DigestError("the reply is too short to hold a report")
        answers, device = HEAD.unpack_from(body)
        examples, loss, dropped = REPORT.unpack_from(body, HEAD.size)
        update = codec.decode(body[start:], like)
        return cls(answers, Contribution(device, examples, loss, dropped, update))
