"""What runs on the server: opens a round, closes it with the replies, and holds the ledger in between."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgetune.aggregate import Memory, gap, ordered, shares
from edgetune.core.errors import DigestError, DivergenceError
from edgetune.core.pieces import Layers, laid
from edgetune.core.update import Contribution, Dense, Projected, Update, within
from edgetune.federation.buffer import Buffer
from edgetune.federation.choosing import Chooser
from edgetune.federation.messages import KEPT, Messages
from edgetune.federation.reply import Reply, binding
from edgetune.federation.tickets import Tickets
from edgetune.federation.turns import sample_devices
from edgetune.methods.method import TuningMethod
from edgetune.methods.stale import check_stale
from edgetune.wire import UP, Frame


@dataclass(frozen=True, slots=True)
class Closed:
    """What a round brought.

    Args:
        loss: mean loss of the devices' steps, weighted by examples; NaN if the method tells nobody.
        dropped: steps dropped on devices.
        refused: why each reply that was left out was: damaged, of another round or run, of nobody who was asked, NaN,
            infinite or absurd; by device.
        void: fewer replies could be used than the round needs, and the state stayed.
        residual: how far the change of the weights is from the mean of the devices' (Frobenius norm); None where the
            tuned tensors are no low-rank factors.
        staleness: steps of the server that each reply that counts is late by, by device; empty without a buffer.
    """

    loss: float
    dropped: int
    refused: dict[int, str]
    void: bool = False
    residual: float | None = None
    staleness: tuple[int, ...] = ()


class Server:
    """The coordinator of a federation; it sees updates, never data.

    Args:
        method: how updates are made, encoded and combined.
        base_digest: names the base model, and how text becomes tokens, on all devices (`Worker.identity`).
        devices: ids of all devices, each in [0, 2^32).
        participation: share of the devices asked in a round, in (0, 1].
        seed: master seed, unsigned 32 bits.
        state: what the rounds so far learnt.
        round: completed rounds.
        examples: by device, how many examples it registered with; a reply that claims another number is refused.
            Where nothing is known of a device, its claim is taken.
        memory: what the aggregator remembers of the rounds so far; its start if not given.
        minimum: usable replies without which a round changes nothing, at least 1.
        layers: the tuned tensors by depth, where gradients move them.
        initial: the seed's values of them, where messages are relative to those.
        buffer: what replies to earlier rounds count; such are refused if not given.
        tickets: which replies it still takes; those of the coming round if not given.

    Raises:
        ConfigError: if there is a buffer, and a part of the method needs all replies of a round to be of one state.
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
        examples: Mapping[int, int] | None = None,
        memory: Memory | None = None,
        minimum: int = 1,
        layers: Layers = (),
        initial: Dense | None = None,
        buffer: Buffer | None = None,
        tickets: Tickets | None = None,
    ) -> None:
        if buffer is not None:
            check_stale(method)
        self.memory = (
            memory
            if memory is not None
            else method.remembered(state, layers, {id: (examples or {}).get(id, 1) for id in devices})
        )
        self.method, self.round = method, round
        self.state = method.down.settle(method.aggregate.weigh(state, self.memory))
        self.participation, self._minimum = participation, minimum
        self._devices, self._seed = sorted(devices), seed
        binds = binding(method.digest, base_digest, seed)
        self._messages = Messages(method, binds, seed, layers, initial)
        self._examples = dict(examples or {})
        survey = method.survey
        self._chooser = (
            Chooser(self._messages, survey, layers, self._examples) if survey is not None else None
        )
        self._past = {round: self.state} if method.down.relative else {}
        self._recalls: dict[int, bytes] = {}
        self._buffer = buffer
        self.tickets = tickets or Tickets(buffer.oldest if buffer else 0)

    def sample(self, round: int | None = None) -> list[int]:
        """Return the devices of a round, the coming one if none is named: a pure function of seed and round."""
        round = self.round + 1 if round is None else round
        return sample_devices(self._devices, self.participation, seed=self._seed, round=round)

    def open_round(
        self, held: Mapping[int, int] | None = None, busy: Collection[int] = ()
    ) -> dict[int, bytes]:
        """Return the payload for every sampled device: the state, or what differs from the one that a device holds.

        Args:
            held: by device, the completed rounds of the newest state that it has received; 0 or absent for a newcomer.
            busy: devices whose replies to earlier rounds are still to come; they are not asked.
        """
        held, payloads = held or {}, dict[int, bytes]()
        asked = sample_devices(
            self._devices, self.participation, seed=self._seed, round=self.round + 1, busy=busy
        )
        since = {id: self._since(held.get(id, 0)) for id in asked}
        for start in sorted(set(since.values())):
            payloads[start] = self._messages.write(
                self.round, self.state, self.sample, start, self._past[start] if start else None
            )
        return {id: payloads[since[id]] for id in asked}

    @property
    def surveys(self) -> bool:
        """Whether the devices of the coming round are asked for numbers before it."""
        survey = self.method.survey
        return survey is not None and survey.due(self.round + 1, self.memory)

    def choose(self, answers: Mapping[int, bytes]) -> dict[int, bytes] | None:
        """Return the second message of a round for every device that takes part in it; None if there is none.

        Args:
            answers: what devices sent before the round, by device; nothing if they were not asked.
        """
        if self._chooser is None:
            return None
        ticket = self._messages.ticket(self.round + 1, self.state)
        memory = {name: tensor.clone() for name, tensor in self.memory.items()}
        told = self._chooser.choose(self.round + 1, ticket, self.sample(), answers, memory)
        self.memory = memory
        return told

    @property
    def chosen(self) -> dict[str, list[int]]:
        """By device, the layers that were chosen for it in the round that was opened last, by depth from 0."""
        masks = self._chooser.masks if self._chooser is not None else {}
        return {str(device): np.flatnonzero(mask).tolist() for device, mask in masks.items()}

    def _since(self, round: int) -> int:
        """Return the completed rounds of a state that a message can build on; 0 for the base."""
        return round if round in self._past else 0

    def recall(self, payload: bytes) -> bytes | None:
        """Return the whole state that a message of this round builds on, as a message; None for the base."""
        since = self._messages.since(payload) if self.method.down.relative else 0
        if since and since not in self._recalls:
            self._recalls = {since: self._messages.write(since, self._past[since], self.sample)}
        return self._recalls[since] if since else None

    def close_round(self, replies: Mapping[int, bytes]) -> Closed:
        """Combine the replies and move on by one round; a reply that cannot be used is left out, and the others count.

        The round need not have been opened by this object: after a restart, late replies still fit, if no
        layers were chosen for it. With a buffer, those to earlier rounds count too, each by its own state, and once.

        Args:
            replies: payload by device; devices that did not answer are absent.

        Raises:
            DivergenceError: if no reply can be used and some are no numbers, or the sum leaves their range; the state
                is unchanged.
        """
        self.tickets.open(self.round + 1, self._messages.ticket(self.round + 1, self.state))
        asked = {round: set(self.sample(round)) for round in self.tickets.rounds}
        usable, rounds, dropped, numeric = list[Contribution](), list[int](), 0, False
        refused = self._chooser.refused_in(self.round + 1) if self._chooser is not None else {}
        for device, payload in sorted(replies.items()):
            try:
                round, one = self._open(device, payload, asked)
            except DigestError as error:
                refused[device] = error.what
                continue
            dropped += one.dropped
            if one.update.is_bounded and math.isfinite(one.loss):
                usable.append(one)
                rounds.append(round)
            else:
                refused[device] = "its loss or its update is NaN, infinite or beyond any use"
                numeric = True
        void, residual = len(usable) < self._minimum and (bool(usable) or not numeric), None
        ages = [self.round + 1 - round for round in rounds]
        if not void:
            told = usable
            if self._buffer is not None:
                told = [self._buffer.discounted(one, age) for one, age in zip(usable, ages, strict=True)]
            self.state, self.memory, residual = self._combined(told, refused)
            self.tickets.heard(zip([one.device for one in usable], rounds, strict=True))
        self.round += 1
        if (
            self.method.down.relative
        ):  # of other messages nothing builds on an earlier state, and a model is large
            self._past = {round: state for round, state in self._past.items() if round > self.round - KEPT}
            self._past[self.round] = self.state
        total = sum(one.examples for one in usable)
        loss = sum(one.loss * one.examples for one in usable) / total if usable else math.nan
        staleness = tuple(ages) if self._buffer is not None and not void else ()
        return Closed(math.nan if self.method.private else loss, dropped, refused, void, residual, staleness)

    def _combined(
        self, usable: list[Contribution], refused: Mapping[int, str]
    ) -> tuple[Update, Memory, float | None]:
        """Return state, memory and residual of the round; those of the server change only once all is well."""
        memory = {name: tensor.clone() for name, tensor in self.memory.items()}
        update = self.method.aggregate.combine(usable, self.state, memory) if usable else None
        state, size = self.state, self.method.pool_size
        if isinstance(update, Projected):
            update = self.method.in_order(update, self._seed, self.round + 1, [one.device for one in usable])
        if update is not None:
            if self.method.survey is not None and isinstance(update, Dense) and isinstance(state, Dense):
                update = laid(update, self._messages.layers, state)
            state = _plus(state, self.method.server.step(update, memory, size), pooled=size > 0)
        numbers = [one for one in memory.values() if one.is_floating_point()]
        if usable and state.is_bounded and all(map(within, numbers)):
            state = self.method.aggregate.weigh(state, memory)
            settled = self.method.down.settle(state) if update is not None else state
            return settled, memory, self._residual(usable, update)
        what = "the sum of the updates is beyond any use" if usable else "no reply can be used"
        reasons = "; ".join(f"device {device}: {reason}" for device, reason in list(refused.items())[:3])
        raise DivergenceError(
            f"round {self.round + 1}: {what}{f' ({reasons})' if reasons else ''}",
            hint="if losses are NaN or infinite, lower the learning rate (--set method.learning_rate=...)",
        )

    def _residual(self, usable: list[Contribution], update: Update | None) -> float | None:
        """Return how far a round's change is from the mean of the devices', where products of factors are averaged."""
        scale = self.method.target.factor_scale
        if not scale or update is None:
            return None
        told, by_examples = ordered(usable), bool(getattr(self.method.aggregate, "by_examples", True))
        return gap(told, shares(told, by_examples=by_examples), self.state, update, scale)

    def _open(self, device: int, payload: bytes, asked: Mapping[int, set[int]]) -> tuple[int, Contribution]:
        """Return the round whose message a reply answers, and what is in it."""
        binds = self._messages.binds
        frame = Frame.decode(payload, kind=UP, method=binds[0], base=binds[1])
        ticket = self.tickets.named(device, frame.round, self.round + 1)
        if device not in asked[frame.round]:
            raise DigestError("this device was not asked in this round")
        only = self._chooser.layers_of(device, frame.round) if self._chooser is not None else None
        shared = self._messages.reply_known(frame.round, device, self.state, only)
        reply = Reply.decode(frame.body, self.method.up, shared)
        content = reply.content
        if content.device != device:
            raise DigestError(f"the reply says that it is of device {content.device}")
        if reply.answers != ticket:
            raise DigestError("the reply answers another message than this round's")
        known = self._examples.get(device, content.examples)
        if not content.examples or content.examples != known:
            raise DigestError(f"the reply claims {content.examples} examples, not {known or 'at least one'}")
        if self.method.sends_slopes and isinstance(content.update, Projected):
            change = self.method.change(content.update, frame.round, shared.keys, self.state)
            content = replace(content, update=change.merged(), slopes=content.update)
        if self.method.aggregate.complete and isinstance(content.update, Projected):
            content = replace(content, update=content.update.over(shared.keys))
        return frame.round, content


def _plus(state: Update, update: Update, *, pooled: bool) -> Update:
    if isinstance(state, Projected) and isinstance(update, Projected):
        return (state + update).merged() if pooled else state + update
    if isinstance(state, Dense) and isinstance(update, Dense):
        changed = {
            name: tensor + update.tensors[name] if name in update.tensors else tensor
            for name, tensor in state.tensors.items()
        }
        return Dense({**update.tensors, **changed})
    raise DivergenceError("a dense and a projected update cannot be added")
