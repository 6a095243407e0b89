"""A run that climbs goes back to its best round; a good run, however uneven, goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from federations import METHODS, MakeToy, Toy

from edgetune.core.errors import DivergenceError
from edgetune.core.events import RoundFinished, Stopped
from edgetune.core.ledger import read_ledger
from edgetune.federation.course import Course
from edgetune.federation.state import Checkpoint
from edgetune.methods.options import with_options


def stopped_after(losses: Iterable[float], start: float = math.nan) -> int | None:
    course = Course(start)
    for round, loss in enumerate(losses, start=1):
        course.take(round, loss)
        if course.climbs:
            return round
    return None


@pytest.mark.parametrize(
    ("start", "losses", "round"),
    [
        (8.7, [30.0, 37.0], 2),
        (8.7, [37.0, 33.0], 2),
        (0.2321, [0.206, 0.234, 13.2], 3),
        (4.43, [4.2, 4.0, 4.5, 5.0, 9.0], 4),
        (4.43, [4.2, math.nan], 2),
        (4.43, [math.inf], 1),
        (math.nan, [30.0, 37.0, 45.0], 3),
        (0.0, [5.0, 6.0], 2),
    ],
)
def test_what_climbs_is_stopped(start: float, losses: list[float], round: int) -> None:
    assert stopped_after(losses, start) == round


@pytest.mark.parametrize(
    ("start", "losses"),
    [
        (0.2321, [0.2152, 0.2051, 0.1985, 0.1931, 0.1894, 0.1830, 0.1784, 0.1743, 0.1771, 0.1777]),
        (0.2, [0.2] * 30),
        (4.433, [4.396, 4.412, 4.482, 4.40]),
        (3.0, [3.5, 2.9, 3.3, 2.8, 3.2, 3.1, 2.7]),
        (0.001, [0.004, 0.006, 0.01, 0.015]),
    ],
)
def test_what_only_wavers_goes_on(start: float, losses: list[float]) -> None:
    assert stopped_after(losses, start) is None


def test_noise_of_a_hundredth_never_stops_a_run() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        level = random.uniform(0.1, 5)
        falling = level * np.exp(-np.arange(60) / random.uniform(20, 500))
        assert stopped_after(falling * (1 + 0.01 * random.standard_normal(60)), level) is None


def watching(toy: Toy, start: float) -> Checkpoint:
    return Checkpoint(toy.ledger, toy.worker, toy.fingerprint, Course(start))


def losses(toy: Toy) -> list[float | None]:
    return [event.loss for event in toy.events if isinstance(event, RoundFinished)]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Losses that evaluations give, in this order."""
    script: list[float] = []
    monkeypatch.setattr("federations.evaluate", lambda tuned: script.pop(0))
    return script


@pytest.mark.parametrize("name", ["mezo", "fedkseed", "lora", "heavy"])
@pytest.mark.parametrize("verb", ["federate", "tune"])
def test_the_best_round_is_what_the_ledger_holds(
    name: str, verb: str, toy: MakeToy, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm, wild = toy(name, run="calm"), toy(name, run="wild")
    scripted += [4.0, 3.0]
    best = getattr(calm, verb)(2)
    scripted += [4.0, 3.0, 3.1, 5.0, 6.0, 1.0]
    monkeypatch.setattr(wild, "checkpoint", lambda: watching(wild, 4.5))
    found = getattr(wild, verb)(9)
    assert losses(wild) == [4.0, 3.0, 3.1, 5.0, 6.0]
    (stop,) = [event for event in wild.events if isinstance(event, Stopped)]
    assert (stop.best, stop.best_loss, stop.round, stop.loss) == (2, 3.0, 5, 6.0)
    kept = read_ledger(wild.ledger)
    assert kept.round == found.round == 2
    assert kept.weights_digest == best.weights_digest != ""
    assert not list(wild.ledger.parent.glob("best*"))


@pytest.mark.parametrize("verb", ["federate", "tune"])
def test_where_nothing_is_better_than_the_base_no_ledger_is_left(
    verb: str, toy: MakeToy, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = toy("mezo")
    scripted += [30.0, 37.0]
    monkeypatch.setattr(wild, "checkpoint", lambda: watching(wild, 8.7))
    with pytest.raises(DivergenceError, match="edgetune suggest mezo"):
        getattr(wild, verb)(9)
    assert not list(wild.ledger.parent.glob("*.ledger"))


@pytest.mark.parametrize("verb", ["federate", "tune"])
def test_losses_that_become_nan_end_at_the_best_round(
    verb: str, toy: MakeToy, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = toy("mezo")
    scripted += [4.0, math.nan]
    monkeypatch.setattr(wild, "checkpoint", lambda: watching(wild, 5.0))
    assert getattr(wild, verb)(9).round == 1


def test_steps_that_all_fail_end_at_the_best_round(
    toy: MakeToy, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    METHODS["absurd"] = with_options(METHODS["mezo"], {"learning_rate": 1e30})
    calm, wild = toy("mezo", run="a"), toy("absurd", run="a")
    scripted += [4.0]
    monkeypatch.setattr(calm, "checkpoint", lambda: watching(calm, 5.0))
    calm.tune(1)
    course = Course(5.0, {1: 4.0})
    monkeypatch.setattr(wild, "checkpoint", lambda: Checkpoint(wild.ledger, wild.worker, "f", course))
    scripted += [math.nan] * 3
    assert wild.tune(4).round == 1


@pytest.mark.parametrize("verb", ["federate", "tune"])
def test_a_run_killed_while_it_climbs_comes_to_the_same_end(
    verb: str, toy: MakeToy, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = toy("mezo", run="whole"), toy("mezo", run="killed")
    script = [4.0, 3.0, 5.0, 6.0]
    for one, rounds in ((whole, 9), (killed, 3)):
        scripted[:] = script
        monkeypatch.setattr(one, "checkpoint", lambda one=one: watching(one, 4.5))
        if rounds == 9:
            getattr(one, verb)(9)
    # three of nine rounds, then nothing: the ledger of round 3 and the best beside it
    saved = killed.ledger

    class Killed(BaseException):
        pass

    def kill(event: object) -> None:
        if isinstance(event, RoundFinished) and event.round == 4:
            raise Killed

    monkeypatch.setattr(
        killed, "events", type("Events", (list,), {"append": lambda self, event: kill(event)})()
    )
    with pytest.raises(Killed):
        getattr(killed, verb)(9)
    assert read_ledger(saved).round == 3
    assert read_ledger(saved.with_name("best.ledger")).round == 2
    again = toy("mezo", run="killed")
    scripted[:] = [6.0]
    course = Course(4.5, {1: 4.0, 2: 3.0, 3: 5.0})
    monkeypatch.setattr(again, "checkpoint", lambda: Checkpoint(again.ledger, again.worker, "f", course))
    getattr(again, verb)(9)
    assert again.ledger.read_bytes() == whole.ledger.read_bytes()
    assert not saved.with_name("best.ledger").exists()


@pytest.mark.parametrize("name", ["mezo", "server_momentum", "fedpeptao"])
def test_a_run_that_was_stopped_does_not_climb_again(
    name: str, toy: MakeToy, scripted: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a server remembered is gone by then."""
    wild = toy(name, run="a")
    scripted += [4.0, 5.0, 6.0]
    monkeypatch.setattr(wild, "checkpoint", lambda: watching(wild, 4.5))
    wild.federate(9)
    (stop,) = [event for event in wild.events if isinstance(event, Stopped)]
    before = wild.ledger.read_bytes()
    again = toy(name, run="a")
    course = Course(4.5, {1: 4.0, 2: 5.0, 3: 6.0}, stop)
    monkeypatch.setattr(again, "checkpoint", lambda: Checkpoint(again.ledger, again.worker, "f", course))
    assert again.federate(9).round == 1
    assert again.events == [stop]
    assert again.ledger.read_bytes() == before


def test_a_complete_run_keeps_its_last_round_alone(
    toy: MakeToy, scripted: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calm = toy("mezo")
    scripted += [4.0, 3.0, 3.2]
    monkeypatch.setattr(calm, "checkpoint", lambda: watching(calm, 4.5))
    assert calm.federate(3).round == 3
    assert [one.name for one in calm.ledger.parent.glob("*.ledger")] == ["tuned.ledger"]
