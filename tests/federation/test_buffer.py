"""The asynchronous buffer: what stale replies count, that none counts twice, and what a fleet of stragglers gains."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from federations import METHODS, SEED, MakeToy, Toy, evaluate

from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.events import RoundFinished, RunResumed
from edgetune.core.ledger import Ledger
from edgetune.core.part import STALE
from edgetune.core.update import Contribution, Dense, Projected, Update
from edgetune.federation.beside import FLIGHT, beside
from edgetune.federation.buffer import Buffer
from edgetune.federation.federate import federate
from edgetune.federation.fleet import Fleet
from edgetune.federation.flight import Flight
from edgetune.federation.messages import Messages
from edgetune.federation.plan import Plan
from edgetune.federation.reply import Reply, binding
from edgetune.federation.server import Server
from edgetune.federation.tickets import Tickets
from edgetune.federation.turns import sample_devices
from edgetune.methods.stale import check_stale
from edgetune.wire import UP, Frame

STRAGGLING = Fleet(SEED, spread=1.0, jitter=0.3)
SERVED = ["fedkseed", "averaged", "decomfl_pool", "lora", "full", "ffa", "server_adam", "pool_adam"]
REFUSING = {
    "mezo": "a log of steps", "decomfl": "a log of steps", "mezo_lora": "a log of steps", "one_byte": "hold",
    "feedsign": "hold", "fwdllm": "hold", "fedkseed_pro": "a pool", "flora": "flora", "fedex": "fedex",
}  # fmt: skip


def server_of(toy: Toy, buffer: Buffer | None = None, **more: Any) -> Server:
    given = {"participation": 1.0, "state": toy.worker.tuned.state()} | more
    return Server(toy.method, toy.worker.identity, list(toy.devices), seed=SEED, buffer=buffer, **given)


def answers(toy: Toy, server: Server) -> dict[int, bytes]:
    return {id: toy.devices[id].answer(payload) for id, payload in server.open_round().items()}


def contribution(toy: Toy, payload: bytes, device: int, like: Update) -> Contribution:
    messages = Messages(toy.method, binding(toy.method.digest, toy.worker.identity, SEED), SEED)
    frame = Frame.decode(payload, kind=UP, method=messages.binds[0], base=messages.binds[1])
    known = messages.reply_known(frame.round, device, like)
    return Reply.decode(frame.body, toy.method.up, known).content


def vector(update: Update, size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    if isinstance(update, Dense):
        return np.concatenate([one.double().reshape(-1).numpy() for _, one in sorted(update.tensors.items())])
    summed = np.zeros(size)
    np.add.at(summed, update.keys, update.coefficients.astype(np.float64))
    return summed


def run_of(
    toy: MakeToy, name: str, plan: Plan, *until: int, run: str = "a"
) -> tuple[Ledger, list[RoundFinished]]:
    done: list[RoundFinished] = []
    for rounds in until or (plan.rounds,):
        made = toy(name, run=run)
        ledger = federate(
            made.worker, made.devices, replace(plan, rounds=rounds), made.checkpoint(), evaluate,
            listener=made.events.append,
        )  # fmt: skip
        done += [event for event in made.events if isinstance(event, RoundFinished)]
    return ledger, done


@pytest.mark.parametrize("power", [0.5, 0.0, 2.0])
@pytest.mark.parametrize("name", ["fedkseed", "lora"])
def test_a_reply_counts_by_its_examples_and_its_staleness(name: str, power: float, toy: MakeToy) -> None:
    run = toy(name)
    server = server_of(run, Buffer(3, power))
    first = answers(run, server)
    server.close_round({0: first[0]})
    second = answers(run, server)
    server.close_round({1: first[1]})
    third = answers(run, server)
    like, before = server.state, vector(server.state, 64)
    late = {0: third[0], 2: first[2], 3: second[3]}
    closed = server.close_round(late)
    assert (closed.refused, closed.staleness) == ({}, (0, 2, 1))
    told = [contribution(run, payload, id, like) for id, payload in late.items()]
    total = sum(one.examples for one in told)
    expected = sum(
        one.examples / total * (1 + age) ** -power * vector(one.update, 64)
        for one, age in zip(told, closed.staleness, strict=True)
    )
    change = vector(server.state, 64) - before
    # A table rounds coefficients to 11 bits, and all sums to float32's 24.
    bound = 2.0**-11 * np.abs(vector(server.state, 64)) if name == "fedkseed" else 1e-7
    assert (np.abs(change - expected) <= bound + 1e-6 * np.abs(expected).max()).all()
    assert np.abs(expected).max() > 0


def test_the_published_discount() -> None:
    assert [Buffer(1).weight(age) for age in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert Buffer(1, 0.0).weight(7) == 1.0
    for wrong in ((0,), (1, -1.0), (1, math.inf), (1, 0.5, 9), (1, 0.5, -1)):
        with pytest.raises(ConfigError, match="a buffer needs"):
            Buffer(*wrong)


@pytest.mark.parametrize("name", SERVED)
def test_without_slow_devices_a_full_buffer_is_a_round_bit_for_bit(name: str, toy: MakeToy) -> None:
    plan = Plan(4, 0.5, SEED)
    waiting, _ = run_of(toy, name, plan, run="waiting")
    buffered, rounds = run_of(toy, name, replace(plan, buffer=Buffer(2)), run="buffered")
    assert buffered.digest == waiting.digest
    assert buffered.weights_digest == waiting.weights_digest != ""
    assert all(event.staleness == [0, 0] and event.under_way == 0 for event in rounds)


def test_no_reply_counts_twice(toy: MakeToy) -> None:
    run = toy()
    server = server_of(run, Buffer(1))
    replies = answers(run, server)
    assert not server.close_round({1: replies[1]}).refused
    state = server.state
    again = server.close_round({1: replies[1]})
    assert (again.refused, again.void) == ({1: "this device's reply to round 1 counted before"}, True)
    assert server.state is state
    assert server.close_round({1: replies[1], 2: replies[2]}).staleness == (2,)
    # Whoever knows the tickets after a restart knows who was heard.
    resumed = server_of(
        run, Buffer(1), state=server.state, round=server.round, tickets=Tickets(8, server.tickets.state)
    )
    closed = resumed.close_round({1: replies[1], 2: replies[2], 3: replies[3]})
    assert sorted(closed.refused) == [1, 2]
    assert closed.staleness == (3,)


@pytest.mark.parametrize("oldest", [0, 1, 3])
def test_what_is_too_stale_is_refused_with_the_reason(oldest: int, toy: MakeToy) -> None:
    run = toy()
    server = server_of(run, Buffer(1, oldest=oldest))
    replies = answers(run, server)
    for _ in range(oldest):
        server.close_round({})
    assert server.close_round({0: replies[0]}).staleness == (oldest,)
    closed = server.close_round({1: replies[1]})
    assert closed.void
    assert f"a reply to round 1 arrived in round {oldest + 2}" in closed.refused[1]


def test_a_reply_to_another_runs_state_of_an_earlier_round_is_refused(toy: MakeToy) -> None:
    run, other = toy(), toy("fedkseed", run="b")
    one, two = server_of(run, Buffer(1)), server_of(other, Buffer(1))
    first = answers(run, one)
    one.close_round({0: first[0]})
    two.close_round({1: first[1]})
    second = answers(run, one)
    one.close_round({})
    two.close_round({})
    closed = two.close_round({2: second[2], 3: first[3]})
    assert list(closed.refused) == [2]
    assert "another message" in closed.refused[2]
    assert closed.staleness == (2,)


@pytest.mark.parametrize("name", SERVED)
def test_a_killed_run_with_replies_under_way_goes_on_to_the_same_bits(name: str, toy: MakeToy) -> None:
    plan = Plan(6, 1.0, SEED, fleet=replace(STRAGGLING, failing=0.1), buffer=Buffer(2))
    whole, rounds = run_of(toy, name, plan, run="whole")
    parts, again = run_of(toy, name, plan, 1, 3, 6, run="parts")
    assert parts.digest == whole.digest
    assert parts.weights_digest == whole.weights_digest != ""
    assert sum(age > 0 for event in rounds for age in event.staleness) >= 3
    assert [one.simulated_seconds for one in again] == [one.simulated_seconds for one in rounds]
    assert [one.staleness for one in again] == [one.staleness for one in rounds]
    assert all(one.under_way + len(one.staleness) <= 4 for one in rounds)
    left = [path.name for path in toy(name, run="parts").ledger.parent.glob("*flight*")]
    assert left == ["tuned.flight-6.safetensors"]


def test_replies_under_way_that_are_lost_or_anothers_are_noticed(toy: MakeToy) -> None:
    plan = Plan(2, 1.0, SEED, fleet=STRAGGLING, buffer=Buffer(2))
    run_of(toy, "fedkseed", plan)
    path = beside(toy().ledger, 2, FLIGHT)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ModelError, match="not the one that the ledger"):
        run_of(toy, "fedkseed", replace(plan, rounds=3))
    path.unlink()
    with pytest.raises(ModelError, match="missing"):
        run_of(toy, "fedkseed", replace(plan, rounds=3))


@pytest.mark.parametrize("name", ["fedkseed", "lora"])
def test_stragglers_cost_a_buffered_server_less_simulated_time_to_the_same_loss(
    name: str, toy: MakeToy
) -> None:
    fleet = replace(STRAGGLING, jitter=0.0, spread=1.5)
    _, waiting = run_of(toy, name, Plan(4, 1.0, SEED, fleet=fleet), run="waiting")
    _, buffered = run_of(toy, name, Plan(16, 1.0, SEED, fleet=fleet, buffer=Buffer(2)), run="buffered")
    goal = waiting[-1].loss
    seconds = sum(one.simulated_seconds or 0 for one in waiting)
    reached, spent = next(
        (one.round, sum(each.simulated_seconds or 0 for each in buffered[: one.round]))
        for one in buffered
        if one.loss is not None and goal is not None and one.loss <= goal
    )
    print(f"{name}: loss {goal:.4f} after {seconds:.0f} s waiting, {spent:.0f} s ({reached} steps) buffered")
    assert spent < 0.8 * seconds
    assert {age for one in buffered for age in one.staleness} > {0}


def test_a_device_under_way_is_not_asked_and_its_reply_lands_once() -> None:
    buffer, fleet = Buffer(2), replace(STRAGGLING, jitter=0.5)
    flight, sent, landed = Flight(buffer), list[tuple[int, int]](), list[tuple[int, bytes]]()
    for round in range(1, 40):
        busy = flight.devices
        asked = sample_devices(range(10), 0.5, seed=3, round=round, busy=busy)
        assert not set(asked) & busy
        assert len(asked) + len(busy) == 5
        times = fleet.fates(round, asked, len(asked), 4).times
        sent += [(device, round) for device in asked]
        got, seconds = flight.landed({one: f"{one} {round}".encode() for one in asked}, times, round)
        landed += got.items()
        assert seconds >= 0
        assert len(got) >= 2
        flight = Flight(buffer, state=flight.state)
    assert len(set(landed)) == len(landed)
    assert {payload for _, payload in landed} <= {f"{one} {round}".encode() for one, round in sent}
    assert len(sent) == len(landed) + len(flight.devices)


def test_the_draw_of_a_round_without_busy_devices_is_as_it_was() -> None:
    for round in range(1, 9):
        plain = sample_devices(range(40), 0.25, seed=1, round=round)
        busy = set(plain[:3]) | {39}
        fresh = sample_devices(range(40), 0.25, seed=1, round=round, busy=busy)
        assert set(fresh) <= set(plain) - busy
        assert len(fresh) == 10 - len(busy)


def test_a_round_ends_at_its_deadline_and_the_late_reply_counts_later() -> None:
    flight = Flight(Buffer(2), deadline=10.0)
    got, seconds = flight.landed({0: b"a", 1: b"b"}, {0: 4.0, 1: 13.0}, 1)
    assert (got, seconds) == ({0: b"a"}, 10.0)
    got, seconds = flight.landed({2: b"c"}, {2: 8.0}, 2)
    assert (got, seconds) == ({1: b"b", 2: b"c"}, 8.0)
    assert flight.devices == set()
    assert flight.landed({}, {}, 3) == ({}, 10.0)


def test_a_reply_that_is_too_old_does_not_fill_the_buffer() -> None:
    flight = Flight(Buffer(1, oldest=1))
    flight.landed({0: b"slow", 1: b"a"}, {0: 9.0, 1: 1.0}, 1)
    flight.landed({1: b"b"}, {1: 1.0}, 2)
    got, seconds = flight.landed({1: b"c"}, {1: 20.0}, 3)
    assert (got, seconds) == ({0: b"slow", 1: b"c"}, 20.0)


@pytest.mark.parametrize("name", list(REFUSING))
def test_methods_that_need_one_state_refuse_a_buffer(name: str, toy: MakeToy) -> None:
    with pytest.raises(ConfigError, match=f"{REFUSING[name]}.*does not go with replies made from an earlier"):
        server_of(toy(name), Buffer(2))


@pytest.mark.parametrize("name", ["dpzero", "dp_aggzo", "hidden_devices"])
def test_private_parts_refuse_a_buffer_whatever_else_does(name: str) -> None:
    protection = METHODS[name].protection
    assert protection is not None
    assert STALE in protection.refuses


def test_every_method_is_either_served_or_refuses() -> None:
    refusing = set()
    for name, method in METHODS.items():
        try:
            check_stale(method)
        except ConfigError:
            refusing.add(name)
    assert set(REFUSING) <= refusing
    assert not set(SERVED) & refusing


def test_a_buffer_of_the_oldest_zero_takes_a_rounds_own_replies_only(toy: MakeToy) -> None:
    plan = Plan(4, 1.0, SEED, fleet=STRAGGLING, buffer=Buffer(2, oldest=0))
    _, rounds = run_of(toy, "fedkseed", plan)
    assert {age for one in rounds for age in one.staleness} == {0}
    assert any("arrived in round" in reason for one in rounds for reason in one.reasons)


def test_the_start_of_a_resumed_run_is_told(toy: MakeToy) -> None:
    plan = Plan(1, 1.0, SEED, buffer=Buffer(1))
    run_of(toy, "lora", plan)
    made = toy("lora")
    federate(
        made.worker, made.devices, replace(plan, rounds=2), made.checkpoint(), evaluate,
        listener=made.events.append,
    )  # fmt: skip
    assert made.events[0] == RunResumed(1)


def test_an_update_that_is_not_stale_keeps_its_bits() -> None:
    fresh = Contribution(0, 1, 0.0, 0, Dense({"w": torch.ones(2)}))
    assert Buffer(1).discounted(fresh, 0) is fresh
    late = Buffer(1).discounted(replace(fresh, update=Projected.of(1, 4.0)), 3).update
    assert isinstance(late, Projected)
    assert late.coefficients.tolist() == [2.0]
