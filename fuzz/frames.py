"""Messages between devices and a server: whatever arrives, the state stays a state or the round is refused."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import torch

from edgetune.core.errors import DivergenceError
from edgetune.core.update import Contribution, Dense, Projected, Update
from edgetune.federation.messages import Messages
from edgetune.federation.reply import Reply, binding
from edgetune.federation.server import Server
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import with_options
from edgetune.wire import DOWN, UP, Frame
from fuzz.target import FLOATS, INTEGERS, mutated_bytes, refusal, require

BASE, SEED = "ab" * 32, 0
STATE = Dense({"a": torch.zeros(2, 3), "b": torch.ones(4).half(), "c": torch.ones(2).bfloat16()})
METHODS: list[tuple[TuningMethod, Update]] = [
    (
        with_options(tuning_method("fedkseed"), {"pool": 16}),
        Projected(np.array([3, 9]), np.array([1, -2], np.float32)),
    ),
    (with_options(tuning_method("fedkseed"), {"pool": 4096}), Projected.none()),
    (with_options(tuning_method("mezo"), {"local_steps": 20}), Projected.none()),
    (tuning_method("lora"), STATE),
    (with_options(tuning_method("one_byte"), {"local_steps": 12}), Projected.none()),
    (with_options(tuning_method("feedsign"), {"local_steps": 12}), Projected.none()),
]
HEAD = struct.Struct("<BB")
"""Of a case: which method, and which device the transport says it comes from."""


class Frames:
    """Replies, and the server that opens them."""

    name = "frames"

    def case(self, rng: Random) -> bytes:
        """Return a reply with some of its fields, its change or its bytes made up, mostly with a right checksum."""
        at = rng.randrange(len(METHODS))
        method, state = METHODS[at]
        device = rng.choice((0, 1, 2, 3, 3, 77))
        known = _messages(method).reply_known(1, device, state)
        update = _update(state, known.keys, rng)
        if method.sends_slopes and isinstance(update, Projected):  # slopes come in the order of their steps
            update = update.over([key for key in known.keys if key in set(update.keys.tolist())])
        report: dict[str, Any] = {
            "device": device,
            "examples": 5,
            "loss": 1.0,
            "dropped": 0,
            "update": update,
        }
        if rng.random() < 0.3:
            report["examples"] = rng.choice(INTEGERS) % 2**32
        if rng.random() < 0.3:
            report["loss"] = rng.choice(FLOATS)
        if rng.random() < 0.1:
            report["device"] = rng.choice(INTEGERS) % 2**32
        answers = TICKETS[at] if rng.random() < 0.9 else rng.randbytes(8)
        with np.errstate(over="ignore"):
            body = Reply(answers, Contribution(**report)).encode(method.up, known)
        if rng.random() < 0.4:
            body = mutated_bytes(body, rng)
        names = list(binding(method.digest, BASE, SEED if rng.random() < 0.95 else 1))
        round = 1 if rng.random() < 0.95 else rng.choice(INTEGERS) % 2**32
        payload = Frame(UP if rng.random() < 0.97 else DOWN, names[0], names[1], round, body).encode()
        if rng.random() < 0.1:
            payload = mutated_bytes(payload, rng)
        return HEAD.pack(at, device) + payload

    def check(self, case: bytes) -> str:
        """Let a server close a round with the reply."""
        if len(case) < HEAD.size:
            return "no case"
        at, device = HEAD.unpack_from(case)
        method, state = METHODS[at % len(METHODS)]
        payload = case[HEAD.size :]
        server = _server(method, state)
        before = server.state
        closed = refusal(lambda: server.close_round({device: payload}))
        if isinstance(closed, str):
            require(closed == DivergenceError.__name__, f"a round ended in {closed}")
            require(server.round == 0 and server.state is before, "a refused round changed the state")
            return "refused"
        require(server.round == 1 and closed.void == bool(closed.refused), "accepted and refused")
        if closed.void:
            require(server.state is before, "a void round changed the state")
            return "refused"
        require(server.state.is_bounded, "the state is no number")
        _require_like(server.state, state)
        frame = Frame.decode(payload, kind=UP, method=payload[6:14], base=payload[14:22])
        known = _messages(method).reply_known(frame.round, device, state)
        reply = Reply.decode(frame.body, method.up, known)
        require(reply.content.device == device and device in range(4), "a reply of another device counted")
        if isinstance(state, Projected):
            require(
                reply.encode(method.up, known) == frame.body,
                "an encoding that is not the codec's own was accepted",
            )
        return "accepted"


def _server(method: TuningMethod, state: Update) -> Server:
    return Server(method, BASE, range(4), participation=1.0, seed=SEED, state=state)


def _messages(method: TuningMethod) -> Messages:
    return Messages(method, binding(method.digest, BASE, SEED), SEED)


TICKETS = [_messages(method).ticket(1, _server(method, state).state) for method, state in METHODS]


def _update(state: Update, mine: Sequence[int], rng: Random) -> Update:
    """Return a change that the codec can write, with values of any kind."""
    if isinstance(state, Dense):
        return Dense(_tensors(state, rng))
    count = rng.choice((0, 1, 2, 5, 16))
    keys = np.array([rng.choice(mine) for _ in range(count)], np.int64)
    with np.errstate(over="ignore"):
        values = np.array(
            [rng.gauss(0, 1) if rng.random() < 0.9 else rng.choice(FLOATS) for _ in keys]
        ).astype(np.float32)
    return Projected(keys, values)


def _tensors(state: Dense, rng: Random) -> dict[str, torch.Tensor]:
    tensors = {name: torch.full_like(one, rng.gauss(0, 1)) for name, one in state.tensors.items()}
    if rng.random() < 0.3:
        name = rng.choice(list(tensors))
        tensors[name] = tensors[name].to(rng.choice(TYPES))
    if rng.random() < 0.2:
        name = rng.choice([name for name, one in tensors.items() if not one.is_complex()])
        tensors[name] = torch.full_like(tensors[name].float(), rng.choice(FLOATS)).to(tensors[name].dtype)
    if rng.random() < 0.1:
        tensors[rng.choice(("a", "z", "x" * 300))] = torch.zeros(rng.choice(((), (2, 3), (0,), (3, 2))))
    return tensors


TYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def _require_like(state: Update, before: Update) -> None:
    if isinstance(state, Dense) and isinstance(before, Dense):
        shapes = {name: (one.shape, one.dtype) for name, one in state.tensors.items()}
        require(
            shapes == {name: (one.shape, one.dtype) for name, one in before.tensors.items()}, "other tensors"
        )
    else:
        require(isinstance(state, Projected) and isinstance(before, Projected), "another kind of update")
