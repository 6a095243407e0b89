"""What runs on a device: bytes in, bytes out; nothing of its data is in either."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

from edgetune.core.batch import Batch, response_loss
from edgetune.core.errors import DataError, DigestError
from edgetune.core.pieces import Layer, cut
from edgetune.core.progress import Progress, silent
from edgetune.core.update import Contribution, Dense, Update
from edgetune.data.encode import Example
from edgetune.federation.choosing import read_choice, write_scores
from edgetune.federation.messages import KEPT
from edgetune.federation.reply import REPORT, Reply, binding
from edgetune.federation.steps import take_steps
from edgetune.federation.worker import Worker
from edgetune.tune import DenseTuned
from edgetune.wire import UP, Frame

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
        self._messages = worker.messages

    @property
    def examples(self) -> int:
        """How many examples it holds: what it registers with, and what it must claim in every reply."""
        return len(self._examples)

    def receive(self, payload: bytes) -> tuple[int, Update, bytes]:
        """Read a message and remember its state, on which later ones may build.

        Returns:
            The round that it opens, the state that the round starts from, and its ticket.

        Raises:
            DigestError: as `Messages.read`.
        """
        tuned, states = self._worker.tuned, self._worker.states
        like = tuned.state() if self._worker.method.directions is None else None
        round, state, named = self._messages.read(payload, states, like)
        if self._worker.method.down.relative:
            states[round - 1] = state
            for old in [one for one in states if one < round - KEPT]:
                del states[old]
        return round, state, named

    def named(self, payload: bytes) -> bytes:
        """Return the ticket of the state that a message gives; what answers to the same one is the same reply.

        Raises:
            DigestError: if it is damaged, or belongs to another method, seed or base model.
        """
        return self._messages.named(payload)

    def holds(self, payload: bytes) -> bool:
        """Say whether this device has the state that a message builds on; the base it always has."""
        since = self._messages.since(payload) if self._worker.method.down.relative else 0
        return not since or since in self._worker.states

    def survey(self, payload: bytes, turn: int | None = None) -> bytes:
        """Measure what the server chooses layers by, at the received state, and return it.

        Args:
            payload: as in `answer`.
            turn: as in `answer`: what is measured are the first records that the device would then train on.

        Raises:
            DigestError: as `answer`.
        """
        worker = self._worker
        round, state, named = self.receive(payload)
        worker.tuned.reset(state)
        survey = worker.method.survey
        if survey is None:
            raise DigestError(f"{worker.method.name} asks devices for nothing before a round")
        scores = survey.measure(
            worker.tuned, worker.layers, self._batches(round, turn), worker.objective or response_loss
        )
        return write_scores(self._messages, round, named, self.id, len(self._examples), scores)

    def _batches(self, round: int, turn: int | None) -> Iterator[Batch]:
        first = (round - 1 if turn is None else turn) * self._worker.method.local_steps
        return self._worker.batches(self._examples, self._pad_id, device=self.id, first=first)

    def answer(
        self,
        payload: bytes,
        turn: int | None = None,
        progress: Progress = silent,
        choice: bytes | None = None,
    ) -> bytes:
        """Train from the received state and return the change.

        The device becomes the server's state exactly as received, takes its local steps, and forgets its weights.

        Args:
            payload: a frame of the server (`federation.messages`).
            turn: how many times the device was asked before, so that it goes on where it was in its examples; every
                round so far if not given.
            progress: told after every local step.
            choice: the server's second message, where it chooses layers; nothing else moves then.

        Returns:
            A frame with a `Reply`.

        Raises:
            DigestError: if the frame is damaged, or belongs to another method, seed or base model.
        """
        method, tuned = self._worker.method, self._worker.tuned
        round, state, named = self.receive(payload)
        only = self._chosen(choice, round, named)
        tuned.reset(state)
        tuned.keep(self._worker.scratch)
        with tuned.only(only) if only is not None and isinstance(tuned, DenseTuned) else nullcontext():
            steps = take_steps(
                method,
                tuned,
                self._batches(round, turn),
                self._worker.keys(round, self.id, state),
                method.local.start(tuned),
                round=round,
                state=state,
                objective=self._worker.objective,
                progress=progress,
                label=f"device {self.id}",
            )
            change = steps.slopes if method.sends_slopes else tuned.delta()
        if only is not None and isinstance(change, Dense):
            change = cut(change, only)
        loss, dropped = (0.0, 0) if method.private else (steps.loss, steps.dropped)
        content = Contribution(self.id, len(self._examples), loss, dropped, change)
        known = self._messages.reply_known(round, self.id, state, only)
        body = Reply(named, content).encode(method.up, known)
        return Frame(UP, *self._messages.binds, round, body).encode()

    def _chosen(self, choice: bytes | None, round: int, ticket: bytes) -> list[Layer] | None:
        """Return the layers that the server chose; None where it chooses none."""
        if self._worker.method.survey is None:
            return None
        if choice is None:
            raise DigestError("the server has chosen no layers for this device")
        return read_choice(self._messages, choice, round, ticket, self._worker.layers)
