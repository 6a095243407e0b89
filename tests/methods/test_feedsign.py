"""FeedSign: a bit a direction each way, the majority decides, and a minority of liars moves nothing."""

from __future__ import annotations

import numpy as np
import pytest
from served import SEED, messages_of, reply_of, server_of, state_of

from edgetune.core.errors import ConfigError
from edgetune.federation.messages import HEAD as STATE_HEAD
from edgetune.federation.reply import HEAD, REPORT
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options

METHOD = with_options(tuning_method("feedsign"), {"local_steps": 8, "learning_rate": 0.5})
NAN = float("nan")


def test_a_direction_is_a_bit_up_and_down() -> None:
    server = server_of(METHOD)
    asked = server.sample()
    replies = {id: reply_of(server, id, [1.0, -1] * 4) for id in asked}
    assert {len(payload) for payload in replies.values()} == {34 + HEAD.size + REPORT.size + 1 + 1}
    server.close_round(replies)
    (payload,) = set(server.open_round().values())
    assert len(payload) == 34 + STATE_HEAD.size + 1 + 1
    long = server_of(with_options(METHOD, {"local_steps": 800}))
    assert len(reply_of(long, long.sample()[0], [1.0] * 800)) == len(replies[asked[0]]) + 99


def test_the_majority_decides_and_a_tie_counts_as_one() -> None:
    server = server_of(METHOD, devices=4, participation=1.0)
    votes = {
        0: [1.0, -1, -1, -1, 1, NAN, NAN, 0],
        1: [2.0, -9, 1, -1, 1, NAN, 5, -1],
        2: [3.0, 1, 1, -1, -1, NAN, NAN, 3],
        3: [-99.0, -1, -1, 50, -1, NAN, -5, -1],
    }
    closed = server.close_round({id: reply_of(server, id, one, examples=5 + id) for id, one in votes.items()})
    assert (closed.refused, closed.dropped) == ({}, 4 + 2)
    keys = METHOD.keys(SEED, 1, 0)
    assert state_of(server).keys.tolist() == keys[:5] + keys[6:]
    assert state_of(server).coefficients.tolist() == [-0.5, 0.5, -0.5, 0.5, -0.5, -0.5, -0.5]
    (payload,) = set(server.open_round().values())
    _, state, _ = messages_of(METHOD).read(payload, {}, None)
    assert state_of(server).equals(state)  # type: ignore[arg-type]


def test_a_device_without_a_slope_has_no_vote() -> None:
    with_it, without = (server_of(METHOD, devices=3, participation=1.0) for _ in range(2))
    votes = {0: [-1.0] * 8, 1: [1.0] * 8}
    with_it.close_round(
        {id: reply_of(with_it, id, one) for id, one in {**votes, 2: [NAN] * 7 + [-1]}.items()}
    )
    without.close_round({id: reply_of(without, id, one) for id, one in votes.items()})
    first, second = state_of(with_it).coefficients, state_of(without).coefficients
    assert first[:7].tolist() == second[:7].tolist()
    assert (first[7], second[7]) == (0.5, -0.5)


def test_a_minority_of_liars_changes_no_bit() -> None:
    honest, attacked = (server_of(METHOD, devices=5, participation=1.0) for _ in range(2))
    rng = np.random.default_rng(0)
    for _ in range(3):
        slopes = rng.normal(0, 1, 8)
        for server, liars in ((honest, ()), (attacked, (1, 4))):
            told = {id: (-1e9 * slopes if id in liars else slopes).tolist() for id in range(5)}
            server.close_round({id: reply_of(server, id, one) for id, one in told.items()})
    assert state_of(honest).equals(state_of(attacked))
    assert len(state_of(honest).keys) == 24


def test_a_round_without_any_vote_changes_nothing() -> None:
    server = server_of(METHOD)
    server.close_round({id: reply_of(server, id, [1.0] * 8) for id in server.sample()})
    state = server.state
    assert server.close_round({}).void
    assert server.state is state


def test_devices_that_move_or_take_directions_of_their_own_are_refused() -> None:
    with pytest.raises(ConfigError, match="majority_sign needs weights that only the server moves"):
        with_options(METHOD, {"optimiser": "sgd", "learning_rate": 0.1})
    mine = tuning_method("one_byte")
    with pytest.raises(ConfigError, match="share"):
        with_options(mine, {"aggregate": "majority_sign"})
