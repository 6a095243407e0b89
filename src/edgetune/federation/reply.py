"""What a device sends up in a round: who it is, which message it answers, what its steps were like, and the change."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2s

import numpy as np
import torch

from edgetune.core.errors import DigestError
from edgetune.core.keys import key_id, pool_key
from edgetune.core.update import Contribution, Projected, Stepped, Update, Weighed
from edgetune.wire import Codec, Known

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


def ticket(binds: tuple[bytes, bytes], round: int, state: Update) -> bytes:
    """Name the state that a round starts from by 8 bytes, whatever form it travels in.

    The server says it, a device checks it against the state that it formed and repeats it in its reply, which counts in
    that round of that run only.

    Args:
        binds: as `binding` returns them.
        round: number of the round.
        state: what the server holds.
    Cost: one pass over the state's bytes.
    """
    named = blake2s(b"".join(binds) + round.to_bytes(4, "little"), digest_size=8)
    if isinstance(state, Projected):
        moving = state.moving()
        named.update(moving.keys.tobytes() + moving.coefficients.tobytes())
        if isinstance(state, Weighed):
            named.update(state.amplitudes.tobytes())
        if isinstance(state, Stepped):
            named.update(state.last.to_bytes(4, "little"))
    else:
        for name in sorted(state.tensors):
            tensor = state.tensors[name].detach().cpu().contiguous()
            named.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            named.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return named.digest()


@dataclass(frozen=True, slots=True)
class Reply:
    """The body of a device's message.

        ticket (8 bytes), device (uint32), examples (uint32), mean loss (float32), dropped steps (uint16), change

    Args:
        answers: `ticket` of the state that the server sent.
        content: what the device contributes.
    """

    answers: bytes
    content: Contribution

    def encode(self, codec: Codec, known: Known) -> bytes:
        """Return the bytes; `known` is what both ends know of this device's round."""
        one = self.content
        report = REPORT.pack(one.examples, np.float32(one.loss), min(one.dropped, 0xFFFF))
        return HEAD.pack(self.answers, one.device) + report + codec.encode(one.update, known)

    @classmethod
    def decode(cls, body: bytes, codec: Codec, known: Known) -> Reply:
        """Read the bytes.

        Args:
            body: a frame's body.
            codec: of the method.
            known: what both ends know of this device's round.

        Raises:
            DigestError: if they are too short, or the change is no change of that state.
        """
        start = HEAD.size + REPORT.size
        if len(body) < start:
            raise DigestError("the reply is too short to hold a report")
        answers, device = HEAD.unpack_from(body)
        examples, loss, dropped = REPORT.unpack_from(body, HEAD.size)
        update = codec.decode(body[start:], known)
        return cls(answers, Contribution(device, examples, loss, dropped, update))
