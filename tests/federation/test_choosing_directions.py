"""Discriminative sampling in a federation: what is chosen, what travels, and that one candidate is no choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from federations import SEED, MakeToy, Toy

from edgetune.core.update import Projected, Stepped
from edgetune.federation.messages import HEAD as STATE_HEAD
from edgetune.federation.reply import HEAD, REPORT
from edgetune.federation.server import Server
from edgetune.methods.offered import offered_keys
from edgetune.methods.options import with_options


def with_candidates(made: Toy, candidates: int) -> Toy:
    method = with_options(made.method, {"candidates": candidates})
    return Toy(made.folder, method, made.ledger)


def plain_of(made: Toy) -> Toy:
    method = with_options(made.method, {"draw": "fresh", "keep_last": False})
    return Toy(made.folder, method, made.ledger)


def server_of(toy: Any, **more: Any) -> Server:
    given = {"state": toy.worker.tuned.state(), "participation": 1.0} | more
    return Server(toy.method, toy.worker.identity, list(toy.devices), seed=SEED, **given)


def test_one_candidate_is_the_plain_draw_bit_for_bit(toy: MakeToy) -> None:
    plain = plain_of(toy("discriminative", run="plain")).federate(4)
    one = with_candidates(toy("discriminative", run="one"), 1).federate(4)
    four = toy("discriminative", run="four").federate(4)
    assert one.digest == plain.digest
    assert one.weights_digest == plain.weights_digest != ""
    assert four.digest != plain.digest
    assert len(plain.update.keys) > 0


def test_devices_take_some_of_what_they_are_offered_once_a_step_was_taken(toy: MakeToy) -> None:
    run = toy("discriminative")
    server, others = server_of(run), 0
    for round in range(1, 4):
        before = server.state
        assert isinstance(before, Stepped) == (round > 1)
        replies = {id: run.devices[id].answer(payload) for id, payload in server.open_round().items()}
        server.close_round(replies)
        assert isinstance(server.state, Stepped)
        taken = server.state.step.keys.tolist()
        assert len(taken) == 4 * 8
        for id in range(4):
            offered = offered_keys(run.method, SEED, round, id, before)
            plain = run.method.keys(SEED, round, id, before)
            mine = [key for key in offered if key in taken]
            assert len(mine) == 8
            assert offered[: len(plain)] == plain
            others += mine != plain
            if round == 1:
                assert mine == plain
    assert others >= 7  # of 8: that all of the greatest are the first eight of 32 is unlikely


def test_a_choice_costs_a_byte_a_direction_up_and_four_bytes_down(toy: MakeToy) -> None:
    run = toy("discriminative")
    server = server_of(run)
    server.close_round({id: run.devices[id].answer(one) for id, one in server.open_round().items()})
    newcomer, there = server.open_round()[0], server.open_round(dict.fromkeys(range(4), 1))[0]
    assert len(newcomer) == 34 + STATE_HEAD.size + 12 * 32 + 4
    assert len(there) == 34 + STATE_HEAD.size + 4
    reply = run.devices[0].answer(newcomer)
    assert len(reply) == 34 + HEAD.size + REPORT.size + 4 + 8 + 1 + 4 * 8


def test_the_mark_is_part_of_the_states_name(toy: MakeToy) -> None:
    run = toy("discriminative")
    server = server_of(run)
    server.close_round({id: run.devices[id].answer(one) for id, one in server.open_round().items()})
    state, messages = server.state, run.devices[0]._messages
    assert isinstance(state, Stepped)
    names = {
        messages.ticket(2, one)
        for one in (state, replace(state, last=31), Projected(state.keys, state.coefficients))
    }
    assert len(names) == 3


def test_dropped_slopes_are_left_out_and_the_others_keep_their_directions(toy: MakeToy) -> None:
    run = toy("discriminative")
    server = server_of(run)
    known = run.devices[0]._messages.reply_known(2, 0, server.state)
    assert (len(known.keys), known.chosen) == (32, 8)
    some = Projected(np.array(known.keys, np.int64)[[4, 9, 30]], np.ones(3, np.float32))
    body = run.method.up.encode(some, known)
    assert run.method.up.decode(body, known).equals(some)
