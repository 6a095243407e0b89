"""What runs on a device: bytes in, bytes out; nothing of its data is in either."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from edgetune.core.errors import DataError, DigestError
from edgetune.core.progress import Progress, silent
from edgetune.core.update import Contribution, Projected
from edgetune.data.encode import Example
from edgetune.federation.reply import REPORT, Reply, binding, ticket
from edgetune.federation.steps import draw_batches, take_steps
from edgetune.federation.worker import Worker
from edgetune.wire import DOWN, UP, Frame

__all__ = ["REPORT", "Device", "binding"]


class Device:
    """One device of a federation.

    Args:
        id: its stable number.
        examples: its private data, encoded; at least one.
        worker: the model it uses, alone or in turn with others.
        pad_id: the padding token.

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
    ) -> None:
        if not examples:
            raise DataError("a device without examples cannot train", where=f"device {id}")
        self.id, self._examples, self._worker = id, examples, worker
        self._pad_id = pad_id
        self._binding = binding(worker.method.digest, worker.identity, worker.seed)

    @property
    def examples(self) -> int:
        """How many examples it holds: what it registers with, and what it must claim in every reply."""
        return len(self._examples)

    def answer(self, payload: bytes, turn: int | None = None, progress: Progress = silent) -> bytes:
        """Train from the received state and return the change.

        The device becomes the server's state exactly as received, takes its local steps, and forgets its weights.

        Args:
            payload: a frame of the server: 4 bytes of master seed and the encoded state.
            turn: how many times the device was asked before, so that it goes on where it was in its examples; every
                round so far if not given.
            progress: told after every local step.

        Returns:
            A frame with a `Reply`.

        Raises:
            DigestError: if the frame is damaged, or belongs to another method, seed or base model.
        """
        method, tuned = self._worker.method, self._worker.tuned
        frame = Frame.decode(payload, kind=DOWN, method=self._binding[0], base=self._binding[1])
        if len(frame.body) < 4:
            raise DigestError("the message is too short to hold a seed")
        (seed,) = struct.unpack_from("<I", frame.body)
        if seed != self._worker.seed:
            raise DigestError(
                f"the server's directions follow seed {seed}, this device's seed {self._worker.seed}",
                where=f"device {self.id}",
            )
        like = tuned.state() if method.directions is None else None
        tuned.reset(method.codec.decode(frame.body[4:], like))
        turn = frame.round - 1 if turn is None else turn
        tuned.keep(self._worker.scratch)
        batches = draw_batches(
            self._examples,
            method.batch_size,
            self._pad_id,
            seed=seed,
            device=self.id,
            first=turn * method.local_steps,
        )
        steps = take_steps(
            method,
            tuned,
            batches,
            method.keys(seed, frame.round, self.id),
            method.local.start(tuned),
            round=frame.round,
            objective=self._worker.objective,
            progress=progress,
            label=f"device {self.id}",
        )
        change = tuned.delta()
        if isinstance(change, Projected):
            moved = change.coefficients != 0
            change = Projected(change.keys[moved], change.coefficients[moved])
        content = Contribution(self.id, len(self._examples), steps.loss, steps.dropped, change)
        body = Reply(ticket(payload), content).encode(method.codec)
        return Frame(UP, *self._binding, frame.round, body).encode()
