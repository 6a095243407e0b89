"""DeComFL: a round is its directions' coefficients, however many devices; who was away pulls what it missed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgetune.core.errors import DigestError
from edgetune.core.update import Contribution, Projected
from edgetune.federation.messages import HEAD as STATE_HEAD
from edgetune.federation.messages import Messages
from edgetune.federation.reply import Reply, binding
from edgetune.federation.server import Server
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.method import TuningMethod
from edgetune.methods.options import defaults, with_options
from edgetune.wire import DOWN, UP, Frame, Table

BASE, SEED = "ab" * 32, 3
METHOD = with_options(tuning_method("decomfl"), {"local_steps": 3, "directions_per_step": 2})
POOLED = with_options(METHOD, {"draw": "pool", "pool": 16})


def server_of(method: TuningMethod, **more: Any) -> Server:
    return Server(method, BASE, range(6), participation=0.5, seed=SEED, state=Projected.none(), **more)


def reply_of(server: Server, device: int, numbers: list[float]) -> bytes:
    """Return a reply with a coefficient for each direction of the round; NaN where no step counted."""
    method = server.method
    messages = Messages(method, binding(method.digest, BASE, SEED), SEED)
    known = messages.reply_known(server.round + 1, device, server.state)
    values = np.array(numbers, np.float32)
    keys = np.array(list(dict.fromkeys(known.keys)), np.int64)[: len(values)]
    update = Projected(keys[~np.isnan(values)], values[~np.isnan(values)])
    content = Contribution(device, 5 + device, 1.0, 0, update)
    body = Reply(messages.ticket(server.round + 1, server.state), content).encode(method.up, known)
    return Frame(UP, *messages.binds, server.round + 1, body).encode()


def test_the_published_defaults() -> None:
    found = defaults(tuning_method("decomfl"))
    published = {
        "eps": 1e-3,
        "learning_rate": 1e-5,
        "directions_per_step": 5,
        "local_steps": 1,
        "batch_size": 32,
    }
    assert published.items() <= found.items()
    assert (found["estimate"], found["by_examples"]) == ("one_sided", False)


def test_all_devices_of_a_round_take_the_same_directions_and_of_others_other_ones() -> None:
    first = METHOD.keys(SEED, 1, 0)
    assert first == METHOD.keys(SEED, 1, 5)
    assert len(set(first)) == 6
    assert not set(first) & set(METHOD.keys(SEED, 2, 0))


def test_a_round_is_the_plain_mean_of_each_direction_in_the_order_of_the_steps() -> None:
    server = server_of(METHOD)
    a, b, c = server.sample()
    replies = {
        a: reply_of(server, a, [0.0, 2, 3, 4, 5, 6]),
        b: reply_of(server, b, [3.0, 6, 3, 0, 1, 0]),
        c: reply_of(server, c, [0.0, 1, 0, 5, 0, 3]),
    }
    server.close_round(replies)
    assert isinstance(server.state, Projected)
    assert server.state.keys.tolist() == METHOD.keys(SEED, 1, 0)
    assert server.state.coefficients == pytest.approx([1, 3, 2, 3, 2, 3])


def test_a_message_is_four_bytes_a_direction_of_a_missed_round() -> None:
    server = server_of(METHOD)
    for _ in range(4):
        server.close_round({id: reply_of(server, id, [1.0 + id] * 6) for id in server.sample()})
    one = len(next(iter(server.open_round(dict.fromkeys(range(6), 3)).values())))
    newcomer = len(next(iter(server.open_round().values())))
    assert one == 34 + STATE_HEAD.size + 4 * 6
    assert newcomer == 34 + STATE_HEAD.size + 4 * 4 * 6


def test_a_device_that_was_away_forms_the_same_state_as_one_that_was_there() -> None:
    server = server_of(METHOD)
    messages = Messages(METHOD, binding(METHOD.digest, BASE, SEED), SEED)
    states = {0: server.state}
    for round in range(3):
        numbers = [float("nan"), 1e-3, 2, 3, 0, 5.5] if round == 1 else [1.0] * 6
        server.close_round({id: reply_of(server, id, numbers) for id in server.sample()})
        states[round + 1] = server.state
    for since in range(4):
        (payload,) = set(server.open_round(dict.fromkeys(range(6), since)).values())
        _, state, _ = messages.read(payload, states, None)
        assert isinstance(state, Projected)
        assert isinstance(server.state, Projected)
        assert state.equals(server.state)


def test_a_log_with_a_number_too_few_or_too_many_is_refused() -> None:
    server = server_of(METHOD)
    server.close_round({id: reply_of(server, id, [1.0] * 6) for id in server.sample()})
    messages = Messages(METHOD, binding(METHOD.digest, BASE, SEED), SEED)
    frame = Frame.decode(
        next(iter(server.open_round().values())), kind=DOWN, method=messages.binds[0], base=messages.binds[1]
    )
    for body in (frame.body[:-4], frame.body + bytes(4)):
        with pytest.raises(DigestError):
            messages.read(replace(frame, body=body).encode(), {}, None)


def test_a_run_longer_than_a_pool_is_put_on_one_and_stops_growing() -> None:
    assert isinstance(POOLED.down, Table)
    assert POOLED.shares_directions
    log, pool = server_of(METHOD), server_of(POOLED)
    sizes: list[tuple[int, int]] = []
    for _ in range(12):
        for server in (log, pool):
            server.close_round({id: reply_of(server, id, [1.0 + id] * 3) for id in server.sample()})
        down = [len(next(iter(server.open_round().values()))) for server in (log, pool)]
        sizes.append((down[0], down[1]))
    assert sizes[-1][0] == 34 + STATE_HEAD.size + 4 * 6 * 12
    assert sizes[-1][1] <= 34 + STATE_HEAD.size + 6 + 4 * 16
    assert max(there for _, there in sizes) <= 34 + STATE_HEAD.size + 6 + 4 * 16
