"""What devices send in the first round, as whoever opens their messages sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edgetune.core.update import Dense, Update
from edgetune.data.encode import Example
from edgetune.federation.device import Device
from edgetune.federation.reply import Reply
from edgetune.federation.worker import Worker
from edgetune.privacy.sketch import sketch
from edgetune.recipe.prepare import Prepared
from edgetune.wire import UP, Frame

DEVICE = 0
"""Whose messages are opened."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A device's message, opened.

    Args:
        bytes: of the whole message.
        numbers: that the change has.
        update: the change, as it arrived; slopes where a device sends those.
        vector: float64, the same as one vector, sketched if it is long (`privacy.sketch`).
    """

    bytes: int
    numbers: int
    update: Update
    vector: npt.NDArray[np.float64]


class Sender:
    """A device of a run in its first round, whatever records it has; the message is the one that a server gets.

    Args:
        prepared: model and method; the device takes all of its records in every step, up to the batch size.
        seed: of the run's directions, which everybody knows.
    """

    def __init__(self, prepared: Prepared, seed: int) -> None:
        self._pad_id, self.method = prepared.pad_id, prepared.method
        self.worker = Worker(prepared.backbone, prepared.method, seed)
        self._state = self.worker.tuned.state()
        self._opening = self.worker.messages.write(0, self._state, lambda round: [DEVICE])

    def send(self, examples: Sequence[Example]) -> Upload:
        """Return what a device with these records sends, decoded as a server decodes it.

        Cost: the local steps of a round.
        """
        messages = self.worker.messages
        payload = Device(DEVICE, examples, self.worker, pad_id=self._pad_id).answer(self._opening, turn=0)
        frame = Frame.decode(payload, kind=UP, method=messages.binds[0], base=messages.binds[1])
        known = messages.reply_known(frame.round, DEVICE, self._state)
        update = Reply.decode(frame.body, self.method.up, known).content.update
        flat = _flat(update, known.keys, self.method.pool_size)
        return Upload(len(payload), len(flat), update, sketch(flat).double().numpy())


def _flat(update: Update, keys: Sequence[int], pool: int) -> torch.Tensor:
    """Return a change as one vector: tensors by name, or a number for every direction that it may move."""
    if isinstance(update, Dense):
        return torch.cat([update.tensors[name].flatten().float() for name in sorted(update.tensors)])
    taken = keys if set(update.keys.tolist()) <= set(keys) else range(pool)
    return torch.from_numpy(update.over(taken).coefficients)
