"""Just One Byte: a byte a slope each way, the step over the root of their number, and peers that come and go."""

from __future__ import annotations

import math

import numpy as np
import pytest
from served import SEED, messages_of, reply_of, server_of, state_of

from edgetune.core.errors import ConfigError
from edgetune.core.update import Update
from edgetune.federation.messages import HEAD as STATE_HEAD
from edgetune.federation.reply import HEAD, REPORT
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import defaults, with_options
from edgetune.wire import Log8

METHOD = with_options(tuning_method("one_byte"), {"local_steps": 4})
NAN = float("nan")


def test_the_published_defaults() -> None:
    published = {
        "eps": 1e-3,
        "learning_rate": 1e-1,
        "local_steps": 30,
        "batch_size": 64,
        "aggregate": "root_n",
    }
    assert published.items() <= defaults(tuning_method("one_byte")).items()


def test_a_step_is_every_slope_over_the_root_of_how_many_arrived() -> None:
    server = server_of(METHOD)
    a, b, c = server.sample()
    slopes = {a: [1.0, 0, NAN, -2], b: [0.5, 8, -16, NAN], c: [NAN] * 3 + [4]}
    closed = server.close_round({id: reply_of(server, id, one) for id, one in slopes.items()})
    assert not closed.refused
    rate = np.float32(-0.1 / math.sqrt(7))
    expected = [rate * np.float32(slope) for one in slopes.values() for slope in one if not math.isnan(slope)]
    assert state_of(server).coefficients.tobytes() == np.array(expected, np.float32).tobytes()
    assert state_of(server).keys.tolist() == [
        key
        for id, one in slopes.items()
        for key, slope in zip(METHOD.keys(SEED, 1, id), one, strict=True)
        if not math.isnan(slope)
    ]


def test_a_slope_costs_a_byte_up_and_down() -> None:
    server = server_of(METHOD)
    asked = server.sample()
    replies = {id: reply_of(server, id, [1.0, 2, 3, NAN]) for id in asked}
    assert {len(payload) for payload in replies.values()} == {34 + HEAD.size + REPORT.size + 1 + 4}
    server.close_round(replies)
    (payload,) = set(server.open_round().values())
    assert len(payload) == 34 + STATE_HEAD.size + 4 + 3 * (4 + 1 + 4)
    long = with_options(METHOD, {"local_steps": 40})
    other = server_of(long)
    assert len(reply_of(other, other.sample()[0], [1.0] * 40)) == len(replies[asked[0]]) + 36


def test_a_peer_that_joins_late_or_missed_rounds_has_the_same_bits_as_one_that_was_there() -> None:
    server, rng = server_of(METHOD), np.random.default_rng(1)
    messages, states = messages_of(METHOD), dict[int, Update]({0: server.state})
    for round in range(1, 6):
        asked = server.sample()
        there = asked if round != 3 else asked[1:]  # a peer is killed in the middle of a round
        server.close_round({id: reply_of(server, id, rng.normal(0, 30, 4).tolist()) for id in there})
        states[round] = server.state
    for since in range(6):
        (payload,) = set(server.open_round(dict.fromkeys(range(6), since)).values())
        _, state, named = messages.read(payload, states if since else {}, None)
        assert state_of(server).equals(state)  # type: ignore[arg-type]
        assert named == messages.ticket(6, server.state)


def test_zeros_are_kept_in_the_state_so_that_the_number_of_slopes_is_known() -> None:
    server = server_of(METHOD)
    server.close_round({id: reply_of(server, id, [0.0, 0, 1, 0]) for id in server.sample()})
    assert len(state_of(server).keys) == 12
    (payload,) = set(server.open_round().values())
    _, state, _ = messages_of(METHOD).read(payload, {}, None)
    assert state_of(server).equals(state)  # type: ignore[arg-type]


def test_what_a_byte_rounds_is_rounded_for_everybody() -> None:
    server = server_of(METHOD, participation=0.1)
    (only,) = server.sample()
    slopes = [0.123, -45.6, 7.8, 0.009]
    server.close_round({only: reply_of(server, only, slopes)})
    levels = Log8().settle(np.array(slopes, np.float32))
    assert state_of(server).coefficients.tolist() == (levels * np.float32(-0.05)).tolist()


def test_scalars_may_travel_as_float32_for_comparison() -> None:
    wide = with_options(METHOD, {"up_values": "float32", "down_values": "float32"})
    server = server_of(wide, participation=0.1)
    (only,) = server.sample()
    server.close_round({only: reply_of(server, only, [0.123, -45.6, 7.8, 0.009])})
    expected = (np.array([0.123, -45.6, 7.8, 0.009], np.float32) * np.float32(-0.05)).tolist()
    assert state_of(server).coefficients.tolist() == expected
    (payload,) = set(server.open_round().values())
    _, state, _ = messages_of(wide).read(payload, {}, None)
    assert state_of(server).equals(state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"up_values": "float32"}, "a log of steps needs slopes written as log8"),
        (
            {"aggregate": "mean", "down_values": "float32"},
            "mean does not go with weights that only the server moves",
        ),
        ({"warmup": 5}, "hold does not go with a learning rate that changes"),
        ({"optimiser": "sgd", "learning_rate": 0.1}, "root_n needs weights that only the server moves"),
        ({"learning_rate": 0.0}, "must lie between"),
        ({"aggregate": "majority_sign"}, "needs directions that all devices of a round share"),
    ],
)
def test_parts_that_do_not_fit_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        with_options(METHOD, options)


def test_a_device_alone_is_refused_and_sent_to_the_federation() -> None:
    with pytest.raises(ConfigError, match="one_byte needs a server") as refused:
        METHOD.check_alone()
    assert refused.value.hint == "edgetune federate one_byte"
    tuning_method("decomfl").check_alone()
