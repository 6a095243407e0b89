"""What runs on the server: opens a round, closes it with the replies, and holds the ledger in between."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgetune.core.errors import DigestError, DivergenceError
from edgetune.core.keys import stream
from edgetune.core.update import Contribution, Dense, Projected, Update
from edgetune.methods.method import TuningMethod
from edgetune.run.device import REPORT, binding
from edgetune.wire import DOWN, UP, Frame


@dataclass(frozen=True, slots=True)
class Closed:
    """What a round brought.

    Args:
        loss: mean loss of the devices' steps, weighted by examples; NaN if none counted.
        dropped: steps dropped on devices.
        refused: devices whose update was NaN or infinite and was left out.
    """

    loss: float
    dropped: int
    refused: list[int]


class Server:
    """The coordinator of a federation; it sees updates, never data.

    Args:
        method: how updates are made, encoded and combined.
        base_digest: the base model all devices hold.
        devices: ids of all devices.
        participation: share of the devices asked in a round, in (0, 1].
        seed: master seed, unsigned 32 bits.
        state: what the rounds so far learnt.
        round: completed rounds.
    """

    def __init__(
        self,
        method: TuningMethod,
        base_digest: str,
        devices: Sequence[int],
        *,
        participation: float,
        seed: int,
        state: Update,
        round: int = 0,
    ) -> None:
        self.method, self.state, self.round = method, state, round
        self._devices, self._participation, self._seed = sorted(devices), participation, seed
        self._binding = binding(method.digest, base_digest)

    def sample(self) -> list[int]:
        """Return the devices of the coming round: a pure function of seed and round, without replacement."""
        count = max(1, math.floor(self._participation * len(self._devices) + 1e-9))
        chosen = stream(self._seed, "devices", self.round + 1).choice(
            len(self._devices), count, replace=False
        )
        return sorted(self._devices[int(index)] for index in chosen)

    def open_round(self) -> dict[int, bytes]:
        """Return the payload for every sampled device; all are equal, whether or not a device took part before."""
        body = struct.pack("<I", self._seed) + self.method.codec.encode(self.state)
        payload = Frame(DOWN, *self._binding, self.round + 1, body).encode()
        return dict.fromkeys(self.sample(), payload)

    def close_round(self, replies: Mapping[int, bytes]) -> Closed:
        """Combine the replies and move on by one round.

        Args:
            replies: payload by device; devices that did not answer are absent.

        Raises:
            DigestError: if a reply is damaged or belongs elsewhere; the state is unchanged.
            DivergenceError: if no reply can be used.
        """
        contributions = [self._open(device, payload) for device, payload in sorted(replies.items())]
        usable = [one for one in contributions if one.update.is_finite and math.isfinite(one.loss)]
        refused = [one.device for one in contributions if one not in usable]
        update = self.method.aggregate.combine(usable)
        if update is None:
            raise DivergenceError(
                f"round {self.round + 1}: no device sent a finite update",
                hint="lower the learning rate (--set method.learning_rate=...)",
            )
        self.state = _plus(self.state, update)
        self.round += 1
        total = sum(one.examples for one in usable)
        loss = sum(one.loss * one.examples for one in usable) / total
        return Closed(loss, sum(one.dropped for one in contributions), refused)

    def _open(self, device: int, payload: bytes) -> Contribution:
        frame = Frame.decode(payload, kind=UP, method=self._binding[0], base=self._binding[1])
        if frame.round != self.round + 1:
            raise DigestError(
                f"a reply to round {frame.round} arrived in round {self.round + 1}", where=f"device {device}"
            )
        if len(frame.body) < REPORT.size:
            raise DigestError("the reply is too short to hold a report", where=f"device {device}")
        examples, loss, dropped = REPORT.unpack_from(frame.body)
        if not examples:
            raise DigestError("the reply claims no examples", where=f"device {device}")
        update = self.method.codec.decode(frame.body[REPORT.size :])
        if isinstance(update, Dense) and not _alike(self.state, update):
            raise DigestError("the reply's tensors are not the tuned ones", where=f"device {device}")
        return Contribution(device, examples, loss, dropped, update)


def _alike(state: Update, update: Dense) -> bool:
    shapes = {name: tensor.shape for name, tensor in update.tensors.items()}
    return isinstance(state, Dense) and shapes == {name: one.shape for name, one in state.tensors.items()}


def _plus(state: Update, update: Update) -> Update:
    if isinstance(state, Projected) and isinstance(update, Projected):
        return (state + update).merged()
    if isinstance(state, Dense) and isinstance(update, Dense):
        return Dense({name: tensor + update.tensors[name] for name, tensor in state.tensors.items()})
    raise DivergenceError("a dense and a projected update cannot be added")
