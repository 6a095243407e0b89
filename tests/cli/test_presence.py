"""What a server's terminal says of its devices: each of a few, sums of many, and nothing that a device could misuse."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.cli.presence import FEW, _round_number
from edgetune.core.events import Event, RoundFinished
from edgetune.core.host_events import DeviceSeen, HostsRound

ROUND = RoundFinished(
    1, [0, 1, 2], 2.5, 2.25, [10, 11], [100, 100], 0, "d", 1.0, 1, unanswered={"offline": 1}
)
NETWORK = HostsRound(1, 2, 4, [0, 1], {"2": "offline"}, [3])


def said(events: Iterable[Event], *, quiet: bool = False) -> list[str]:
    shown = io.StringIO()
    display = Display(Console(file=shown, width=200), quiet=quiet)
    for event in events:
        display.listen(event)
    return shown.getvalue().splitlines()


def test_each_device_that_comes_goes_or_is_refused_is_a_line() -> None:
    events = [
        DeviceSeen(0, "online"), DeviceSeen(0, "offline"), DeviceSeen(1, "refused", "another base model"),
        DeviceSeen(None, "refused", "no such key"),
    ]  # fmt: skip
    assert said(events) == [
        "device 0 online",
        "device 0 offline",
        "device 1 refused: another base model",
        "a stranger refused: no such key",
    ]
    assert said(events, quiet=True) == []


def test_the_line_of_a_round_says_who_was_there_and_why_replies_are_missing() -> None:
    (line,) = said([NETWORK, ROUND])
    assert line.endswith("1.0 s, 2 of 4 online, 2 answered (0 1), no reply: 1 offline, 1 late refused")
    assert "did not answer in time" not in line


def test_the_line_of_a_round_in_one_process_is_as_before() -> None:
    (line,) = said([ROUND])
    assert line.endswith("1.0 s, 1 did not answer in time")


def test_a_round_is_not_told_of_the_network_of_another() -> None:
    (line,) = said([HostsRound(7, 2, 4, [], {}), ROUND])
    assert "online" not in line


@pytest.mark.parametrize("state", ["online", "offline", "refused"])
def test_a_thousand_devices_are_summed_up(state: str) -> None:
    crowd = [DeviceSeen(number, state, "no such key") for number in range(1000)]
    lines = said([*crowd, NETWORK, ROUND])
    assert len(lines) == FEW + 7 + 1 + 1, "10, 20, 50, 100, 200, 500, 1000; the sum; the round"
    assert " 1,000 times" in lines[-2]
    assert ("(1,000 no such key)" in lines[-2]) == (state == "refused")
    assert len(said([*crowd, NETWORK, *crowd[:FEW]])) == FEW + 7 + 1 + FEW, "each round begins anew"


def test_many_that_come_do_not_hide_one_that_is_refused() -> None:
    crowd = [DeviceSeen(number, "online") for number in range(1000)]
    assert "device 7 refused: old version" in said([*crowd, DeviceSeen(7, "refused", "old version")])


def test_a_round_of_a_thousand_reasons_is_one_line_that_can_be_read() -> None:
    everyone = {str(number): f"my reason {number}" for number in range(1000)}
    (line,) = said([HostsRound(1, 1000, 1000, [], everyone), ROUND])
    assert len(line) < 300
    assert "997 other" in line


def test_what_a_device_says_is_no_markup_and_no_command() -> None:
    lines = said(
        [
            DeviceSeen(1, "refused", "[bold]x[/] \x1b[2J\nsecond"),
            HostsRound(1, 1, 1, [], {"0": "[/] \x1b[H"}),
            ROUND,
        ]
    )
    assert lines[0] == "device 1 refused: [bold]x[/] ?[2J second"
    assert "no reply: 1 [/] ?[H" in lines[1]


def test_round_numbers() -> None:
    assert [count for count in range(1, 2001) if _round_number(count)] == [
        *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    ]
