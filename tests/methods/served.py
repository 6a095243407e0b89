"""Servers without devices: replies are made of slopes, so that what a server does with them can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgetune.core.update import Contribution, Projected
from edgetune.federation.messages import Messages
from edgetune.federation.reply import Reply, binding
from edgetune.federation.server import Server
from edgetune.methods.method import TuningMethod
from edgetune.wire import UP, Frame

BASE, SEED = "ab" * 32, 3


def server_of(method: TuningMethod, devices: int = 6, participation: float = 0.5, **more: Any) -> Server:
    given: dict[str, Any] = {"state": Projected.none(), **more}
    return Server(method, BASE, range(devices), participation=participation, seed=SEED, **given)


def messages_of(method: TuningMethod) -> Messages:
    return Messages(method, binding(method.digest, BASE, SEED), SEED)


def reply_of(server: Server, device: int, slopes: Sequence[float], examples: int = 5) -> bytes:
    """Return a reply with one number for each key of the device's steps, NaN where none counted."""
    messages = messages_of(server.method)
    known = messages.reply_known(server.round + 1, device, server.state)
    values = np.array(slopes, np.float32)
    counted = ~np.isnan(values)
    update = Projected(np.array(known.keys, np.int64)[counted], values[counted])
    content = Contribution(device, examples, 1.0, int((~counted).sum()), update)
    body = Reply(messages.ticket(server.round + 1, server.state), content).encode(server.method.up, known)
    return Frame(UP, *messages.binds, server.round + 1, body).encode()


def state_of(server: Server) -> Projected:
    assert isinstance(server.state, Projected)
    return server.state
