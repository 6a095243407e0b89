"""How a server waits for devices of other hosts: which replies count, who is asked again, and what is told of whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from memory_link import Behaviour, MemoryLink, closed, good, opening, seen, task

from edgetune.core.events import Event
from edgetune.federation.pipes import Message
from edgetune.hosts.envelope import seal
from edgetune.hosts.kinds import ANSWER, ERROR, NO, OPEN, RECALL, REPLY
from edgetune.hosts.remote import AGAIN, Remote

Make = Callable[..., Remote]


def test_all_that_are_asked_answer(link: MemoryLink, make: Make, told: list[Event]) -> None:
    devices = [link.add(id) for id in range(3)]
    remote = make(3, 3)
    up = remote.answer([task(id) for id in range(3)])
    assert up == {id: b"change of %d" % id for id in range(3)}
    assert remote.unanswered == {}
    assert [one.kinds() for one in devices] == [[OPEN, ANSWER]] * 3
    assert [one.examples for one in remote.known.values()] == [7, 7, 7]
    assert seen(told) == [(id, "online", "") for id in range(3)]
    event = closed(remote, told)
    assert (event.online, event.registered, event.accepted, event.unanswered) == (3, 3, [0, 1, 2], {})


def test_of_more_that_are_asked_the_first_replies_count_and_the_others_are_not_needed(
    link: MemoryLink, make: Make, told: list[Event]
) -> None:
    for id, seconds in enumerate((5.0, 1.0, 9.0, 2.0)):
        link.add(id)
        link.devices[id].seconds = seconds
    remote = make(4, 2)
    assert sorted(remote.answer([task(id) for id in range(4)])) == [1, 3]
    assert remote.unanswered == {0: "not needed", 2: "not needed"}
    assert closed(remote, told).late == []
    remote.answer([task(1, 2), task(3, 2)])
    link.sleep(20)
    remote.answer([task(1, 3), task(3, 3)])
    assert closed(remote, told, 3).late == [0, 2], "they worked for nothing, which is counted"


def test_no_more_replies_than_wanted_count_although_they_come_in_one_moment(
    link: MemoryLink, make: Make
) -> None:
    for id in range(4):
        link.add(id)
    remote = make(4, 2)
    assert len(remote.answer([task(id) for id in range(4)])) == 2
    assert sorted(remote.unanswered.values()) == ["not needed"] * 2
    assert len(remote.heard) == 2


@pytest.mark.parametrize(("minimum", "heard", "seconds"), [(1, [0], 10), (2, [0, 1], 30)])
def test_a_round_takes_no_more_after_its_time_but_waits_for_its_minimum(
    link: MemoryLink, make: Make, minimum: int, heard: list[int], seconds: int
) -> None:
    for id in range(3):
        link.add(id)
    remote = make(3, 3, minimum=minimum, seconds=10)
    for id, takes in enumerate((1.0, 30.0, 100.0)):
        link.devices[id].seconds = takes
    begin = link.now
    assert sorted(remote.answer([task(id) for id in range(3)])) == heard
    assert seconds <= link.now - begin < seconds + 1
    assert remote.unanswered == dict.fromkeys({0, 1, 2} - set(heard), "late")


def test_a_late_reply_is_refused_and_counted_and_does_not_count_in_the_next_round(
    link: MemoryLink, make: Make, told: list[Event]
) -> None:
    slow = opening(lambda said: Message(REPLY, {}, b"of round %d" % said.head["round"]))
    for id in range(2):
        link.add(id, slow)
    remote = make(2, 2, seconds=5)
    link.devices[1].seconds = 8.0
    assert remote.answer([task(0), task(1)]) == {0: b"of round 1"}
    first = closed(remote, told)
    assert (first.accepted, first.unanswered, first.late) == ([0], {"1": "late"}, [])
    link.devices[1].seconds = 4.0
    assert remote.answer([task(0, 2), task(1, 2)]) == {0: b"of round 2", 1: b"of round 2"}
    assert closed(remote, told, 2).late == [1]
    assert closed(remote, told, 3).late == [], "once"


def test_a_device_that_goes_and_comes_back_in_a_round_is_told_and_asked_again_and_counts_once(
    link: MemoryLink, make: Make, told: list[Event]
) -> None:
    for id in range(2):
        link.add(id)
    remote = make(2, 2)
    link.devices[0].seconds = link.devices[1].seconds = 10.0
    begin = link.now
    link.at(begin + 3, lambda: link.go(1))
    link.at(begin + 6, lambda: link.come(1))
    assert remote.answer([task(0), task(1)]) == {0: b"change of 0", 1: b"change of 1"}
    assert link.devices[1].kinds() == [OPEN, ANSWER, OPEN, ANSWER]
    assert seen(told)[2:] == [(1, "offline", ""), (1, "online", "")]
    event = closed(remote, told)
    assert (event.accepted, event.late) == ([0, 1], [])
    assert 26 <= link.now - begin < 28
    link.sleep(50)
    remote.answer([task(0, 2), task(1, 2)])
    assert closed(remote, told, 2).late == [], "what was lost with the process is nobody's"


def test_a_device_that_comes_back_between_two_looks_is_seen_by_its_session(
    link: MemoryLink, make: Make
) -> None:
    device = link.add(0)
    remote = make(1, 1)
    device.seconds = 5.0
    link.at(link.now + 2, lambda: link.come(0))
    assert remote.answer([task(0)]) == {0: b"change of 0"}
    assert device.kinds() == [OPEN, ANSWER, OPEN, ANSWER]


def test_a_device_that_declines_says_why_and_is_asked_again_while_it_is_needed(
    link: MemoryLink, make: Make
) -> None:
    no = iter([True, True, False])
    moody: Behaviour = lambda said: (  # noqa: E731
        Message(NO, {"why": "battery at 3 %"}) if next(no) else Message(REPLY, {}, b"at last")
    )
    link.add(0, opening(moody))
    remote = make(1, 1)
    begin = link.now
    assert remote.answer([task(0)]) == {0: b"at last"}
    assert 2 * AGAIN <= link.now - begin < 2 * AGAIN + 2
    assert remote.unanswered == {}


def test_a_round_with_its_minimum_waits_for_nobody_who_declined(link: MemoryLink, make: Make) -> None:
    link.add(0)
    link.add(1, opening(lambda said: Message(NO, {"why": "not  while\nit rains\x1b[2J\ud800" + "!" * 999})))
    remote = make(2, 2, minimum=1)
    begin = link.now
    assert sorted(remote.answer([task(0), task(1)])) == [0]
    assert link.now - begin < 1
    why = remote.unanswered[1]
    assert (why.startswith("not while it rains?[2J??!!!"), why.isprintable(), len(why)) == (
        True,
        True,
        300,
    ) or why


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "the message is no envelope of edgetune's"),
        (b"\xff" * 40, "the message is no envelope of edgetune's"),
        (seal(Message("shutdown", {}, b"x")), "it answers 'shutdown'"),
        (seal(Message(ERROR, {"what": "the base model is another"})), "the base model is another"),
        (seal(Message(NO, {"why": {"a": [1]}})), "{'a': [1]}"),
        (seal(Message(RECALL)), "it answers 'recall'"),
    ],
    ids=["empty", "nonsense", "unknown", "error", "strange reason", "recall of nothing"],
)
def test_whatever_else_a_device_says_is_the_reason_why_it_does_not_count(
    link: MemoryLink, make: Make, said: bytes, why: str
) -> None:
    link.add(0)
    link.add(1, opening(lambda _: said))
    remote = make(2, 2)
    assert remote.answer([task(0), task(1)]) == {0: b"change of 0"}
    assert remote.unanswered == {1: why}


def test_a_device_without_the_state_gets_it_whole_once(link: MemoryLink, make: Make) -> None:
    returned: Behaviour = lambda said: (  # noqa: E731
        Message(REPLY, {}, said.body) if said.head["recalled"] else Message(RECALL)
    )
    device = link.add(0, opening(returned))
    remote = make(1, 1)
    asked = task(0, 5, recall=b"the whole state")
    assert remote.answer([asked]) == {0: b"the whole state" + asked.payload}
    assert [one.head["recalled"] for one in device.got[1:]] == [0, 15]
    forgetful = link.add(0, opening(lambda said: Message(RECALL)))
    remote.wait(1)
    link.at(link.now + 40, lambda: link.add(0))
    remote.answer([asked])
    assert len(forgetful.got) <= 1 + 2 * (40 / AGAIN + 1), "no faster than any device that declines"


def test_a_device_that_never_opens_is_asked_for_nothing(link: MemoryLink, make: Make) -> None:
    link.add(0)
    mute = link.add(1, lambda said: None)
    remote = make(2, 2, seconds=5, wait=1)
    assert sorted(remote.answer([task(0), task(1)])) == [0]
    assert (remote.unanswered, mute.kinds(), remote.ready) == ({1: "late"}, [OPEN], [0])


@pytest.mark.parametrize("examples", [-3, 0, True, "7", None, 7.0, 2**32, 10**300, [7]], ids=repr)
def test_a_device_that_opens_with_no_number_of_examples_takes_no_part(
    link: MemoryLink, make: Make, told: list[Event], examples: Any
) -> None:
    link.add(0)
    odd = link.add(1, good(1, examples))
    remote = make(2, 2, seconds=5, wait=1)
    assert sorted(remote.answer([task(0), task(1)])) == [0]
    assert (odd.kinds(), remote.known[1].examples) == ([OPEN], 0)
    assert (1, "refused", "it answers 'opened'") in seen(told)


def test_who_has_not_heard_the_first_opening_answers_the_second(link: MemoryLink, make: Make) -> None:
    device = link.add(0, seconds=5)
    remote = make(1, 1, wait=0)
    link.sleep(1)
    remote.open(Message(OPEN, {"recipe": {"noise": 3}}))
    link.sleep(4.5)  # the first answer has been there since
    remote._look({})
    assert remote.ready == [], "what it said was about the run without its noise"
    remote.wait(1)
    assert [one.head for one in device.got] == [{"recipe": {}}, {"recipe": {"noise": 3}}]


def test_what_a_device_said_before_it_left_counts(link: MemoryLink, make: Make, told: list[Event]) -> None:
    link.add(0)
    barred = link.add(1, lambda said: Message(ERROR, {"what": "another base"}))
    barred.seconds = 1.001
    link.at(1.002, lambda: link.go(1))
    remote = make(2, 2, wait=1)
    link.devices[0].seconds = 3.001
    link.at(link.now + 3.002, lambda: link.go(0))
    assert remote.answer([task(0), task(1)]) == {0: b"change of 0"}
    assert (1, "refused", "another base") in seen(told)
    assert [state for device, state, _ in seen(told) if device == 0] == ["online", "offline"]


def test_who_is_not_there_is_absent_and_strangers_are_told_of(
    link: MemoryLink, make: Make, told: list[Event]
) -> None:
    link.add(0)
    remote = make(3, 3, seconds=5, wait=1)
    link.away = [(None, "this key is not registered"), (2, "the signature is not of this key")]
    assert sorted(remote.answer([task(0), task(1), task(2)])) == [0]
    assert remote.unanswered == {1: "absent", 2: "absent"}
    assert seen(told)[1:] == [
        (None, "refused", "this key is not registered"),
        (2, "refused", "the signature is not of this key"),
    ]
