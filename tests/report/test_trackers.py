"""Trackers hold the newest run of a log, every number once, whatever happened to the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune.core.errors import ConfigError, OutputError
from edgetune.core.event_log import EventLog
from edgetune.core.events import Event, RoundFinished, RunFinished, RunResumed
from edgetune.core.host_events import HostsRound
from edgetune.report import trackers
from edgetune.report.log import Line
from edgetune.report.scalars import Point, points
from edgetune.report.trackers import Tracked, tracking

from .logs import round_, stage, started

BASE, TUNED = (stage(name, 2.0, 30.0, 1000, 2000, None) for name in ("base", "tuned"))
HOSTS = HostsRound(
    round=2,
    online=3,
    registered=4,
    accepted=[0, 2],
    unanswered={"1": "not charging", "3": "offline"},
    late=[1],
    transport_up_bytes={"0": 100, "1": 20},
    transport_down_bytes={"0": 7, "1": 8},
    waited_seconds=1.5,
)


class Kept:
    """A tracker that keeps numbers as a list, and can be full."""

    def __init__(self) -> None:
        self.numbers: list[tuple[str, int, float]] = []
        self.rewritten, self.full, self.open = 0, False, True

    def rewrite(self, points: Sequence[Point]) -> None:
        self.numbers, self.rewritten = [], self.rewritten + 1
        self.append(points)

    def append(self, points: Sequence[Point]) -> None:
        if self.full:
            raise OutputError("cannot write: No space left on device")
        self.numbers += [(point.tag, point.step, point.value) for point in points]

    def close(self) -> None:
        self.open = False

    def curve(self, tag: str) -> dict[int, float]:
        found = [(step, value) for name, step, value in self.numbers if name == tag]
        assert len(found) == len(dict(found)), f"{tag} has a step twice"
        return dict(found)


def follow(tracker: Kept, log: Path, *events: Event) -> list[str]:
    """Tell a log and then a tracker, as a run does; returns the warnings."""
    warnings = list[str]()
    tell, tracked = EventLog(log), Tracked(tracker, log, warnings.append)
    for event in events:
        tell(event)
        tracked(event)
    return warnings


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_a_round_becomes_its_losses_bytes_seconds_and_memory(log: Path) -> None:
    kept, done = Kept(), replace(round_(3, 1.25), refused=[7], unanswered={"late": 2}, dropped=5)
    follow(kept, log, started(), done)
    assert kept.curve("loss/held_out") == {3: 1.25}
    assert kept.curve("loss/train") == {3: done.train_loss}
    assert kept.curve("rouge_l") == {3: done.rouge_l}
    assert kept.curve("bytes/payload_up") == {3: 1204 + 1198 + 1210 + 1201}
    assert kept.curve("bytes/payload_down") == {3: 4 * 16_412}
    assert kept.curve("round/seconds") == {3: 6.8}
    assert kept.curve("round/peak_memory_bytes") == {3: 61_000_000}
    assert kept.curve("round/replies") == {3: 4}
    assert (kept.curve("round/refused"), kept.curve("round/unanswered")) == ({3: 1}, {3: 2})
    assert kept.curve("round/dropped_steps") == {3: 5}


def test_a_round_between_hosts_becomes_devices_and_bytes_on_the_socket(log: Path) -> None:
    kept = Kept()
    follow(kept, log, started(), HOSTS)
    assert kept.curve("hosts/online") == {2: 3}
    assert (kept.curve("hosts/registered"), kept.curve("hosts/accepted")) == ({2: 4}, {2: 2})
    assert (kept.curve("hosts/unanswered"), kept.curve("hosts/late")) == ({2: 2}, {2: 1})
    assert (kept.curve("bytes/transport_up"), kept.curve("bytes/transport_down")) == ({2: 120}, {2: 15})
    assert kept.curve("hosts/waited_seconds") == {2: 1.5}


def test_what_was_not_measured_is_left_out_and_infinity_is_not() -> None:
    event = replace(round_(1), loss=math.inf, train_loss=math.nan, rouge_l=None)
    found = {point.tag: point.value for point in points(Line(0.0, event))}
    assert found["loss/held_out"] == math.inf
    assert found.keys().isdisjoint({"loss/train", "rouge_l", "round/realised", "round/simulated_seconds"})


def test_stages_are_there_once_though_a_resumed_run_measures_the_base_again(log: Path) -> None:
    kept = Kept()
    follow(kept, log, started(), BASE, round_(1))
    follow(kept, log, started(), replace(BASE, loss=2.5), RunResumed(1), round_(2), TUNED, RunFinished(1.0))
    assert kept.curve("stage/base/loss") == {0: 2.5}
    assert kept.curve("stage/tuned/rouge_l") == {0: 30.0}
    assert sorted(kept.curve("loss/held_out")) == [1, 2]


def test_a_round_that_a_kill_made_a_run_do_twice_counts_as_done_last(log: Path) -> None:
    kept = Kept()
    follow(kept, log, started(), BASE, round_(1, 3.0), round_(2, 2.0), HOSTS, round_(3, 1.0))
    follow(kept, log, started(), BASE, RunResumed(1))
    assert kept.curve("loss/held_out") == {1: 3.0}
    assert kept.curve("hosts/online") == {}
    follow(kept, log, started(), BASE, RunResumed(1), round_(2, 2.5), HOSTS)
    assert kept.curve("loss/held_out") == {1: 3.0, 2: 2.5}
    assert kept.curve("hosts/online") == {2: 3}


def test_rounds_before_anybody_tracked_the_run_are_there_too(log: Path) -> None:
    for event in (started(), BASE, round_(1, 3.0)):
        EventLog(log)(event)
    kept = Kept()
    follow(kept, log, started(), BASE, RunResumed(1), round_(2, 2.0))
    assert kept.curve("loss/held_out") == {1: 3.0, 2: 2.0}


def test_a_run_that_begins_anew_in_its_folder_leaves_nothing_of_the_one_before(log: Path) -> None:
    kept = Kept()
    follow(kept, log, started(), BASE, round_(1, 3.0), round_(2, 2.0))
    follow(kept, log, started(), BASE, RunResumed(0), round_(1, 3.5))
    assert kept.curve("loss/held_out") == {1: 3.5}
    follow(kept, log, started(), BASE, round_(1, 3.7))
    assert kept.curve("loss/held_out") == {1: 3.7}
    follow(kept, log, started(seed=7), replace(BASE, loss=9.0))
    assert kept.curve("loss/held_out") == {}
    assert kept.curve("stage/base/loss") == {0: 9.0}


def test_numbers_that_are_new_are_appended_and_the_log_is_not_read_again(log: Path) -> None:
    kept = Kept()
    follow(kept, log, started(), BASE, *(round_(number) for number in range(1, 6)))
    assert kept.rewritten == 1


def test_a_full_disk_ends_the_tracker_with_one_warning_and_not_the_run(log: Path) -> None:
    kept, warnings = Kept(), list[str]()
    tell, tracked = EventLog(log), Tracked(kept, log, warnings.append)
    for event in (started(), BASE, round_(1)):
        tell(event)
        tracked(event)
    kept.full = True
    for number in (2, 3):
        tracked(round_(number))
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
    kept.full = False
    follow(kept, log, started(), BASE, RunResumed(1), round_(2))
    assert sorted(kept.curve("loss/held_out")) == [1, 2]


def test_trackers_are_opened_where_the_command_line_says_and_closed(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Path, Path, Kept]] = []

    def make(folder: Path, of: Path) -> Kept:
        made.append((folder, of, Kept()))
        return made[-1][2]

    monkeypatch.setattr(trackers, "TRACKERS", {"kept": make})
    heard: list[Event] = []
    with tracking(["kept", "kept:/else:where", "kept"], log, heard.append, print) as tell:
        EventLog(log)(started())
        tell(started())
    assert [(folder, of) for folder, of, _ in made] == [
        (log.parent / "kept", log),
        (Path("/else:where"), log),
    ]
    assert heard == [started()]
    assert not any(kept.open for _, _, kept in made)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        ("", "known: tensorboard"),
        ("tensorboard:", "names no folder"),
    ],
)
def test_what_is_no_tracker_is_refused_before_the_run(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said), tracking([text], tmp_path / "events.jsonl", print, print):
        raise AssertionError("the run began")


def test_a_round_event_with_every_field_is_read_back_from_the_log(log: Path) -> None:
    kept = Kept()
    follow(kept, log, started(), HOSTS, RoundFinished(2, [0], 1.0, 2.0, [5], [6], 0, "d", 0.1, 7))
    again = Kept()
    follow(again, log, RunResumed(2))
    assert sorted(again.numbers) == sorted(kept.numbers)
