"""Replies that are damaged, forged, late, of another run or absurd: each is left out alone, and the others count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from federations import SEED, MakeToy, examples

from edgetune.core.errors import DataError, DigestError, DivergenceError
from edgetune.core.update import Contribution, Dense, Projected
from edgetune.federation.device import Device
from edgetune.federation.messages import HEAD as STATE_HEAD
from edgetune.federation.messages import Messages
from edgetune.federation.reply import HEAD, REPORT, Reply, binding
from edgetune.federation.server import Server
from edgetune.methods.options import with_options
from edgetune.wire import DOWN, UP, Frame


def server_of(toy: Any, participation: float = 1.0, **more: Any) -> Server:
    digest, state = toy.worker.identity, more.pop("state", None) or toy.worker.tuned.state()
    return Server(
        toy.method, digest, list(toy.devices), participation=participation, seed=SEED, state=state, **more
    )


def messages_of(toy: Any) -> Messages:
    return Messages(toy.method, binding(toy.method.digest, toy.worker.identity, SEED), SEED)


def forged(server: Server, toy: Any, device: int = 0, **changes: Any) -> bytes:
    """Make a reply as a device would, but for some changes of the frame or of what is in it."""
    messages = messages_of(toy)
    method, base = messages.binds
    first = toy.method.keys(SEED, server.round + 1, device)[0]
    moved = Projected.of(first, changes.pop("step", 1.0))
    report = {"examples": 4, "loss": 1.0, "dropped": 0, "update": moved, "device": device}
    report |= {name: changes.pop(name) for name in list(changes) if name in report}
    answers = changes.pop("answers", messages.ticket(server.round + 1, server.state))
    known = messages.reply_known(server.round + 1, device, server.state)
    body = Reply(answers, Contribution(**report)).encode(toy.method.up, known)
    fields = {"kind": UP, "method": method, "base": base, "round": server.round + 1, "body": body} | changes
    return Frame(**fields).encode()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"round": 0}, "reply to round 0"),
        ({"round": 2}, "reply to round 2"),
        ({"kind": DOWN}, "direction"),
        ({"method": bytes(8)}, "method"),
        ({"base": bytes(8)}, "base"),
        ({"body": b""}, "short"),
        ({"body": bytes(HEAD.size + REPORT.size) + b"\7"}, "not the coefficients of 4 directions"),
        ({"examples": 0}, "claims 0 examples"),
        ({"examples": 2**32 - 1}, "claims 4294967295 examples, not 5"),
        ({"device": 3}, "of device 3"),
        ({"answers": bytes(8)}, "another message"),
        ({"loss": float("nan")}, "NaN"),
        ({"loss": float("-inf")}, "NaN"),
        ({"step": float("inf")}, "NaN"),
        ({"step": 3e38}, "beyond any use"),
    ],
)
def test_a_bad_reply_is_left_out_alone(changes: dict[str, Any], said: str, toy: MakeToy) -> None:
    run = toy()
    server = server_of(run, examples={0: 4, 1: 5})
    replies = {0: forged(server, run), 1: forged(server, run, **{"device": 1, "examples": 5} | changes)}
    alone = server_of(run)
    alone.close_round({0: replies[0]})
    closed = server.close_round(replies)
    assert said in closed.refused[1]
    assert list(closed.refused) == [1]
    assert server.state.coefficients.tolist() == alone.state.coefficients.tolist()
    state, closed = server.state, server.close_round({0: replies[0]})
    assert (closed.void, closed.refused) == (True, {0: "a reply to round 1 arrived in round 2"})
    assert server.state is state


def test_a_reply_of_nobody_who_was_asked_is_left_out(toy: MakeToy) -> None:
    run = toy()
    server = server_of(run, 0.5)
    asked, others = server.sample(), sorted({0, 1, 2, 3, 77} - set(server.sample()))
    down = next(iter(server.open_round().values()))
    replies = {id: run.devices[id].answer(down) for id in range(4)}
    replies[77] = forged(server, run, 77)
    closed = server.close_round(replies)
    assert sorted(closed.refused) == others
    assert all("not asked" in reason for reason in closed.refused.values())
    only = server_of(run, 0.5, state=Projected.none())
    only.close_round({id: replies[id] for id in asked})
    assert server.state.coefficients.tolist() == only.state.coefficients.tolist()


def test_a_reply_to_the_same_round_of_another_run_is_left_out(toy: MakeToy) -> None:
    run = toy()
    one, other = server_of(run), server_of(run)
    for server, step in ((one, 1.0), (other, 2.0)):
        server.close_round({0: forged(server, run, step=step)})
    late = {0: forged(one, run)}
    assert "another message" in other.close_round(late).refused[0]
    assert not one.close_round(late).refused


def test_after_a_restart_in_the_middle_of_a_round_its_replies_still_count(toy: MakeToy) -> None:
    run = toy()
    server = server_of(run)
    replies = {id: run.devices[id].answer(payload) for id, payload in server.open_round().items()}
    assert not server_of(run, state=Projected.none()).close_round(replies).refused


def test_a_sum_that_leaves_the_range_of_numbers_stops_and_leaves_the_state(toy: MakeToy) -> None:
    run = toy()
    run.method = with_options(run.method, {"pool": 1})  # both rounds move the same direction
    server = server_of(run)
    server.close_round({0: forged(server, run, step=9e17)})
    state = server.state
    with pytest.raises(DivergenceError, match="sum of the updates"):
        server.close_round({0: forged(server, run, step=9e17)})
    assert (server.state, server.round) == (state, 1)


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float64, torch.complex64, torch.int64, torch.bool]
)
def test_tensors_of_another_type_never_reach_the_state(dtype: torch.dtype, toy: MakeToy) -> None:
    run = toy("lora")
    server = server_of(run)
    zero = {name: torch.zeros_like(tensor) for name, tensor in server.state.tensors.items()}
    first = next(iter(zero))
    replies = {
        0: forged(server, run, update=Dense(zero)),
        1: forged(server, run, 1, update=Dense(zero | {first: zero[first].to(dtype)})),
        2: forged(server, run, 2, update=Dense(zero | {first: zero[first].half()})),
        3: forged(server, run, 3, update=Dense(zero | {first: zero[first] + float("nan")})),
    }
    before = server.state.tensors
    assert sorted(server.close_round(replies).refused) == [1, 2, 3]
    for name, tensor in server.state.tensors.items():
        assert torch.equal(tensor, before[name])
        assert tensor.dtype == before[name].dtype


def test_tensors_that_are_not_the_tuned_ones_are_refused(toy: MakeToy) -> None:
    run = toy("lora")
    server = server_of(run)
    closed = server.close_round({0: forged(server, run, update=Dense({"x": torch.ones(1)}))})
    assert closed.void
    assert "not the tuned ones" in closed.refused[0]


def test_a_device_of_another_seed_takes_no_part(toy: MakeToy) -> None:
    run = toy()
    other = Server(
        run.method, run.worker.identity, [0], participation=1.0, seed=SEED + 1, state=Projected.none()
    )
    with pytest.raises(DigestError, match="another seed"):
        run.devices[0].answer(other.open_round()[0])
    closed = other.close_round({0: run.devices[0].answer(server_of(run).open_round()[0])})
    assert "another seed" in closed.refused[0]
    binds = messages_of(run).binds
    lying = Frame(DOWN, *binds, 1, STATE_HEAD.pack(SEED + 1, 0, bytes(8)))
    with pytest.raises(DigestError, match="this device's seed"):
        run.devices[0].answer(lying.encode())


def test_a_device_refuses_what_is_not_its_servers(toy: MakeToy) -> None:
    run = toy()
    payload = server_of(run).open_round()[0]
    other = Device(0, examples(0), toy("mezo", run="b").worker, pad_id=0)
    for damaged in (payload[:-1], payload[:20] + b"x" + payload[21:], b""):
        with pytest.raises(DigestError):
            run.devices[0].answer(damaged)
    with pytest.raises(DigestError, match="method"):
        other.answer(payload)
    with pytest.raises(DigestError, match="short"):
        run.devices[0].answer(forged(server_of(run), run, kind=DOWN, body=b""))
    with pytest.raises(DataError):
        Device(0, [], run.worker, pad_id=0)


def test_a_round_of_too_few_replies_changes_nothing_and_the_next_one_counts(toy: MakeToy) -> None:
    run = toy()
    server = server_of(run, minimum=2)
    before = server.state
    for replies in ({}, {0: forged(server, run)}, {0: forged(server, run), 1: b"x"}):
        closed = server.close_round(replies)
        assert closed.void
        assert server.state is before
        server.round -= 1
    assert not server.close_round({id: forged(server, run, id) for id in (0, 1)}).void
    assert not server.state.equals(before)


def test_replies_that_are_no_numbers_and_nothing_else_stop_the_run(toy: MakeToy) -> None:
    run = toy()
    server = server_of(run)
    with pytest.raises(DivergenceError, match="device 0: its loss or its update"):
        server.close_round({0: forged(server, run, loss=float("nan")), 1: b"x"})
