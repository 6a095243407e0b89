"""The server's message: which run, which round, and the state that the round starts from."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from edgetune.core.errors import DigestError
from edgetune.core.pieces import Layer, Layers, cut
from edgetune.core.update import Dense, Projected, Update, Weighed
from edgetune.federation.reply import ticket
from edgetune.methods.method import TuningMethod
from edgetune.methods.offered import offered_keys
from edgetune.wire import DOWN, Frame, Known

HEAD = struct.Struct("<II8s")
"""Master seed, completed rounds of the state that the message builds on (0: the base), ticket of the state it gives."""
KEPT = 8
"""States of the last rounds that either side keeps, so that messages can build on them."""


@dataclass(frozen=True, slots=True)
class Messages:
    """The messages of a run: what its server and its devices agree on before the first one.

    Args:
        method: how updates are made, encoded and combined.
        binds: names of method and base (`reply.binding`).
        seed: master seed.
        layers: the tuned tensors by depth, where gradients move them.
        initial: the seed's values of them, where messages of the server are relative to those.
    """

    method: TuningMethod
    binds: tuple[bytes, bytes]
    seed: int
    layers: Layers = ()
    initial: Dense | None = None

    def reply_known(
        self, round: int, device: int, like: Update, only: Sequence[Layer] | None = None
    ) -> Known:
        """Return what both ends know of a device's reply in a round; `only` are the layers chosen for it."""
        keys = offered_keys(self.method, self.seed, round, device, like)
        many = self.method.local_steps * self.method.estimate.directions
        chosen = many if many < len(keys) else 0
        if only is not None and isinstance(like, Dense):
            like = cut(like, only)
        return Known(keys, self.method.pool_size, like=like, chosen=chosen)

    def ticket(self, round: int, state: Update) -> bytes:
        """Name the state that a round starts from."""
        return ticket(self.binds, round, self._ordered(state))

    def write(
        self,
        round: int,
        state: Update,
        asked: Callable[[int], Sequence[int]],
        since: int = 0,
        held: Update | None = None,
    ) -> bytes:
        """Return the message that opens round `round + 1`.

        Args:
            round: completed rounds.
            state: what they learnt.
            asked: devices of every round so far.
            since: completed rounds of a state that the receiver holds; 0 for the base.
            held: that state.
        """
        known = replace(self._known(round, since, held or self.initial), asked=asked)
        head = HEAD.pack(self.seed, since, self.ticket(round + 1, state))
        body = head + self.method.down.encode(state, known)
        return Frame(DOWN, *self.binds, round + 1, body).encode()

    def read(
        self, payload: bytes, states: Mapping[int, Update], like: Update | None
    ) -> tuple[int, Update, bytes]:
        """Return the number of the round that a message opens, the state that it starts from, and its ticket.

        Args:
            payload: a frame of the server.
            states: earlier states that the reader holds, by completed rounds.
            like: what dense tensors must be like.

        Raises:
            DigestError: if the frame is damaged, belongs to another method, seed or base model, builds on a state that
                the reader has not, or gives another one than the server says.
        """
        frame = Frame.decode(payload, kind=DOWN, method=self.binds[0], base=self.binds[1])
        if len(frame.body) < HEAD.size or not frame.round:
            raise DigestError("the message is too short to hold a state")
        seed, since, named = HEAD.unpack_from(frame.body)
        if seed != self.seed:
            raise DigestError(f"the server's directions follow seed {seed}, this device's seed {self.seed}")
        if since >= frame.round or (since and since not in states):
            raise DigestError(f"the message builds on round {since}, of which this device holds nothing")
        held = states[since] if since else self.initial
        known = replace(self._known(frame.round - 1, since, held), like=like)
        state = self.method.down.decode(frame.body[HEAD.size :], known)
        if self.ticket(frame.round, state) != named:
            raise DigestError("the state that arrived is not the one that was sent")
        return frame.round, state, named

    def named(self, payload: bytes) -> bytes:
        """Return the ticket of the state that a message gives, whatever it builds on."""
        frame = Frame.decode(payload, kind=DOWN, method=self.binds[0], base=self.binds[1])
        if len(frame.body) < HEAD.size:
            raise DigestError("the message is too short to hold a state")
        ticket: bytes = HEAD.unpack_from(frame.body)[2]
        return ticket

    def since(self, payload: bytes) -> int:
        """Return the completed rounds of the state that a message builds on; 0 if it is the base."""
        frame = Frame.decode(payload, kind=DOWN, method=self.binds[0], base=self.binds[1])
        since: int = HEAD.unpack_from(frame.body)[1]
        return since

    def _known(self, round: int, since: int, held: Update | None) -> Known:
        method, keys = self.method, partial(self.method.keys, self.seed)
        return Known(
            (), method.pool_size, round, since, held, is_state=True,
            keys_of=keys, shared=method.shares_directions, factor=method.aggregate.factor, layers=self.layers,
        )  # fmt: skip

    def _ordered(self, state: Update) -> Update:
        """Return a state in the order in which it is named: a pool by direction."""
        if not isinstance(state, Projected) or not self.method.pool_size:
            return state
        ordered = state.sorted()
        return (
            Weighed(ordered.keys, ordered.coefficients, state.amplitudes)
            if isinstance(state, Weighed)
            else ordered
        )
