"""The exchange before a round: devices send a few numbers, the server answers each with the layers that it trains."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgetune.core.errors import DigestError
from edgetune.core.pieces import Layer, Layers
from edgetune.core.update import LARGEST
from edgetune.federation.messages import Messages
from edgetune.survey import Masks, Memory, Survey
from edgetune.survey.survey import Mask, Scores
from edgetune.wire import CHOICE, SCORES, Frame

HEAD = struct.Struct("<8sII")
"""The message that is answered, the device, and its examples."""
TICKET = 8


def write_scores(
    messages: Messages, round: int, ticket: bytes, device: int, examples: int, scores: Scores
) -> bytes:
    """Return a device's numbers as a message: 16 bytes and 4 a number in a frame."""
    body = HEAD.pack(ticket, device, examples) + scores.astype("<f4").tobytes()
    return Frame(SCORES, *messages.binds, round, body).encode()


def read_scores(
    messages: Messages, payload: bytes, round: int, ticket: bytes, device: int, size: int
) -> tuple[int, Scores]:
    """Return how many examples a device says it holds, and its numbers.

    Raises:
        DigestError: if they are damaged, not of this round, run or device, too many or few, NaN, infinite or absurd.
    """
    frame = Frame.decode(payload, kind=SCORES, method=messages.binds[0], base=messages.binds[1])
    if frame.round != round:
        raise DigestError(f"scores of round {frame.round} arrived before round {round}")
    if len(frame.body) != HEAD.size + 4 * size:
        raise DigestError(f"the scores have {len(frame.body)} bytes, not {HEAD.size + 4 * size}")
    answers, named, examples = HEAD.unpack_from(frame.body)
    if answers != ticket:
        raise DigestError("the scores answer another message than this round's")
    if named != device:
        raise DigestError(f"the scores say that they are of device {named}")
    scores = np.frombuffer(frame.body[HEAD.size :], "<f4").astype(np.float32)
    with np.errstate(invalid="ignore"):
        if not (np.abs(scores) <= LARGEST).all():
            raise DigestError("its scores are NaN, infinite or beyond any use")
    return examples, scores


def write_choice(messages: Messages, round: int, ticket: bytes, mask: Mask) -> bytes:
    """Return a device's layers as a message: 8 bytes and a bit a layer in a frame."""
    return Frame(CHOICE, *messages.binds, round, ticket + np.packbits(mask).tobytes()).encode()


def read_choice(messages: Messages, payload: bytes, round: int, ticket: bytes, layers: Layers) -> list[Layer]:
    """Return the layers that a device trains.

    Raises:
        DigestError: if the message is damaged, of another round or run, or names no layer or one that is not there.
    """
    frame = Frame.decode(payload, kind=CHOICE, method=messages.binds[0], base=messages.binds[1])
    if frame.round != round or frame.body[:TICKET] != ticket:
        raise DigestError("the choice of layers belongs to another round")
    packed = frame.body[TICKET:]
    if len(packed) != -(-len(layers) // 8):
        raise DigestError("the choice of layers is that of another model")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    if not bits[: len(layers)].any() or bits[len(layers) :].any():
        raise DigestError("the choice names no layer, or one that the model has not")
    return chosen(layers, bits[: len(layers)].astype(bool))


def chosen(layers: Layers, mask: Mask) -> list[Layer]:
    """Return the layers of a mask."""
    return [layer for layer, takes in zip(layers, mask, strict=True) if takes]


@dataclass(slots=True)
class Chooser:
    """The server's side, and what it chose for the round that is open.

    Args:
        messages: of the run.
        survey: how it chooses.
        layers: the tuned tensors by depth.
        examples: by device, how many examples it registered with; where nothing is known, its claim is taken.
    """

    messages: Messages
    survey: Survey
    layers: Layers
    examples: Mapping[int, int]
    masks: Masks = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    round: int = 0
    """The round that masks and refusals are of."""

    def choose(
        self, round: int, ticket: bytes, asked: Sequence[int], answers: Mapping[int, bytes], memory: Memory
    ) -> dict[int, bytes]:
        """Return a message for every device that takes part; scores that cannot be used are left out, by reason.

        Args:
            round: that is open.
            ticket: of its message.
            asked: its devices.
            answers: payload by device; none where none was asked for scores.
            memory: changed in place.
        """
        usable, held, size = dict[int, Scores](), dict[int, int](), self.survey.size(len(self.layers))
        self.refused, self.round = {}, round
        for device, payload in sorted(answers.items()):
            try:
                if device not in asked:
                    raise DigestError("this device was not asked in this round")
                claimed, scores = read_scores(self.messages, payload, round, ticket, device, size)
                known = self.examples.get(device, claimed)
                if not claimed or claimed != known:
                    raise DigestError(f"the scores claim {claimed} examples, not {known or 'at least one'}")
            except DigestError as error:
                self.refused[device] = error.what
                continue
            usable[device], held[device] = scores, claimed
        sound = [device for device in asked if device not in self.refused]
        self.masks = self.survey.choose(sound, usable, held, len(self.layers), memory)
        return {
            device: write_choice(self.messages, round, ticket, mask) for device, mask in self.masks.items()
        }

    def refused_in(self, round: int) -> dict[int, str]:
        """Return whose scores were left out before a round, and why."""
        return dict(self.refused) if round == self.round else {}

    def layers_of(self, device: int, round: int) -> list[Layer]:
        """Return the layers that were chosen for a device in a round.

        Raises:
            DigestError: if none were; a server that was restarted has forgotten its choice, and opens the round anew.
        """
        if round != self.round or device not in self.masks:
            raise DigestError("no layers were chosen for this device in this round")
        return chosen(self.layers, self.masks[device])
