"""A simulated fleet: who answers follows from the seed, and a round closes with those who do."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

import pytest
from federations import SEED, MakeToy, evaluate

from edgetune.core.events import RoundFinished
from edgetune.federation.federate import federate
from edgetune.federation.fleet import Fleet
from edgetune.federation.plan import Plan
from edgetune.federation.turns import sample_devices
from edgetune.recipe.asking import asked_for

EVERYBODY = list(range(400))


def test_a_fleet_that_nothing_is_said_of_answers_at_once() -> None:
    fates = Fleet(0).fates(3, [4, 2, 9], 3, 10)
    assert (fates.answering, fates.unanswered, fates.seconds) == ([2, 4, 9], {}, 10.0)


def test_fates_are_functions_of_seed_round_and_device() -> None:
    fleet = Fleet(7, failing=0.3, spread=0.5, jitter=0.2, joining=0.5, rounds=9, deadline=20.0)
    whole = fleet.fates(4, EVERYBODY, 400, 10)
    assert fleet.fates(4, EVERYBODY[::-1], 400, 10) == whole
    alone = [fleet.fates(4, [device], 1, 10).answering == [device] for device in EVERYBODY]
    assert [device for device, there in zip(EVERYBODY, alone, strict=True) if there] == whole.answering
    assert fleet.fates(5, EVERYBODY, 400, 10) != whole
    assert replace(fleet, seed=8).fates(4, EVERYBODY, 400, 10) != whole


def test_devices_fail_as_often_as_is_said() -> None:
    failed = [
        device
        for round in range(1, 21)
        for device in Fleet(0, failing=0.25).fates(round, EVERYBODY, 400, 1).unanswered
    ]
    assert len(failed) / 8000 == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 8000))


def test_the_first_replies_count_and_none_after_the_deadline() -> None:
    fleet = Fleet(0, seconds=2.0, spread=1.0)
    all_in = fleet.fates(1, EVERYBODY, 400, 5)
    times = {device: 10 * fleet.speed(device) for device in EVERYBODY}
    assert all_in.seconds == pytest.approx(max(times.values()))
    assert statistics.median(times.values()) == pytest.approx(10, rel=0.2)
    few = fleet.fates(1, EVERYBODY, 50, 5)
    assert few.answering == sorted(sorted(times, key=times.__getitem__)[:50])
    assert set(few.unanswered.values()) == {"not needed"}
    cut = replace(fleet, deadline=10.0).fates(1, EVERYBODY, 400, 5)
    assert cut.answering == [device for device in EVERYBODY if times[device] <= 10.0]
    assert (set(cut.unanswered.values()), cut.seconds) == ({"late"}, 10.0)


def test_devices_join_once_and_stay() -> None:
    fleet = Fleet(0, joining=0.5, rounds=10)
    there = [set(fleet.fates(round, EVERYBODY, 400, 1).answering) for round in range(1, 11)]
    assert 150 < len(there[0]) < 250
    assert all(before <= after for before, after in itertools.pairwise(there))
    assert there[-1] == set(EVERYBODY)


def test_over_selection_asks_more_and_the_same_first() -> None:
    assert asked_for(200, 0.05, 0.0) == 0.05
    assert [len(sample_devices(range(200), asked_for(200, 0.05, over), seed=0, round=1)) for over in (0, 0.3, 99)] == [
        10, 13, 200,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["fedkseed", "mezo", "lora"])
def test_a_run_of_an_unreliable_fleet_learns_and_goes_on_to_the_same_bits(name: str, toy: MakeToy) -> None:
    fleet = Fleet(SEED, failing=0.3, spread=0.5, joining=0.25, rounds=6, deadline=7.0)
    plan = Plan(6, 0.5, SEED, over_selection=0.5, fleet=fleet)

    def run(folder: str, *rounds: int) -> tuple[str, list[RoundFinished]]:
        done: list[RoundFinished] = []
        for until in rounds:
            made = toy(name, run=folder)
            ledger = federate(
                made.worker, made.devices, replace(plan, rounds=until), made.checkpoint(), evaluate,
                listener=made.events.append,
            )  # fmt: skip
            done += [event for event in made.events if isinstance(event, RoundFinished)]
        return ledger.digest, done

    digest, rounds = run("whole", 6)
    assert run("parts", 2, 6)[0] == digest
    assert any(event.unanswered for event in rounds)
    assert rounds[-1].loss < rounds[0].loss
    for event in rounds:
        assert len(event.payload_down_bytes) == 3 - event.unanswered.get("absent", 0)
        assert len(event.payload_up_bytes) + sum(event.unanswered.values()) == 3
        assert len(event.payload_up_bytes) <= 2
        assert event.void == (not event.payload_up_bytes)
        assert event.simulated_seconds is not None
        assert event.simulated_seconds <= 7.0
