"""What runs on a device: bytes in, bytes out; nothing of its data is in either."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from edgetune.core.errors import DataError, DigestError
from edgetune.core.progress import Progress, silent
from edgetune.core.update import Projected
from edgetune.data.encode import Example
from edgetune.run.steps import draw_batches, take_steps
from edgetune.run.worker import Worker
from edgetune.wire import DOWN, UP, Frame

REPORT = struct.Struct("<IfH")
"""What goes up beside the update: examples, mean loss, dropped steps."""


def binding(method_digest: str, base_digest: str) -> tuple[bytes, bytes]:
    """Return the 8-byte prefixes that every frame carries."""
    return bytes.fromhex(method_digest)[:8], bytes.fromhex(base_digest)[:8]


class Device:
    """One device of a federation.

    Args:
        id: its stable number.
        examples: its private data, encoded; at least one.
        worker: the model it uses, alone or in turn with others.
        pad_id: the padding token.
        progress: told after every local step.

    Raises:
        DataError: if it holds no examples.
    """

    def __init__(
        self,
        id: int,
        examples: Sequence[Example],
        worker: Worker,
        *,
        pad_id: int,
        progress: Progress = silent,
    ) -> None:
        if not examples:
            raise DataError("a device without examples cannot train", where=f"device {id}")
        self.id, self._examples, self._worker = id, examples, worker
        self._pad_id, self._progress = pad_id, progress
        self._binding = binding(worker.method.digest, worker.backbone.digest)

    def answer(self, payload: bytes) -> bytes:
        """Train from the received state and return the change.

        The device becomes the server's state exactly as received, takes its local steps, and forgets its weights.

        Args:
            payload: a frame of the server: 4 bytes of master seed and the encoded state.

        Returns:
            A frame with the number of examples, the mean loss, the dropped steps and the encoded change.

        Raises:
            DigestError: if the frame is damaged or belongs to another method or base model.
        """
        method, tuned = self._worker.method, self._worker.tuned
        frame = Frame.decode(payload, kind=DOWN, method=self._binding[0], base=self._binding[1])
        if len(frame.body) < 4:
            raise DigestError("the message is too short to hold a seed")
        (seed,) = struct.unpack_from("<I", frame.body)
        tuned.reset(method.codec.decode(frame.body[4:]))
        steps = take_steps(
            method,
            tuned,
            draw_batches(
                self._examples, method.batch_size, self._pad_id, seed=seed, round=frame.round, device=self.id
            ),
            method.keys(seed, frame.round, self.id),
            method.local.start(tuned),
            round=frame.round,
            objective=self._worker.objective,
            progress=self._progress,
            label=f"device {self.id}",
        )
        change = tuned.delta()
        if isinstance(change, Projected):
            moved = change.coefficients != 0
            change = Projected(change.keys[moved], change.coefficients[moved])
        report = REPORT.pack(len(self._examples), np.float32(steps.loss), min(steps.dropped, 0xFFFF))
        return Frame(UP, *self._binding, frame.round, report + method.codec.encode(change)).encode()
