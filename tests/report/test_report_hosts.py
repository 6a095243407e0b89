"""What a run across hosts is said to have been: who answered, why the others did not, what the sockets carried."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from edgetune.core.events import Event, RunResumed
from edgetune.core.host_events import DeviceSeen, HostsRound
from edgetune.report.host_grids import devices, hosts_notes
from edgetune.report.html import render
from edgetune.report.plots import plots
from edgetune.report.summary import read_summary, summarise, to_json, write_summary
from edgetune.report.table import print_result

from .logs import Write, full_run, hosts_round, hosts_run, round_, started

BYTES = ["payload_up_bytes", "payload_down_bytes", "transport_up_bytes", "transport_down_bytes"]


def hosts_in(write: Write, run: list[Event]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(write_summary(write(run)).read_text(encoding="utf-8"))["hosts"]
    return found


def test_a_run_in_one_process_has_no_hosts(write: Write) -> None:
    summary = read_summary(write(full_run()))
    assert to_json(summary)["hosts"] is None
    assert hosts_notes(summary.hosts) == []
    assert "<h2>Devices</h2>" not in render(summary)


def test_the_keys_of_hosts_are_those_documented(write: Write) -> None:
    hosts = hosts_in(write, hosts_run())
    assert list(hosts) == ["registered", "rounds", "unanswered", "late", "turned_away", *BYTES, "devices"]
    for row in hosts["rounds"]:
        assert list(row) == [
            *("round", "online", "accepted", "unanswered", "late", *BYTES, "waited_seconds"),
        ]
    for row in hosts["devices"].values():
        assert list(row) == ["answered", "unanswered", "late", *BYTES]


def test_replies_are_counted_by_why_they_did_not_count(write: Write) -> None:
    hosts = hosts_in(write, hosts_run())
    assert [row["online"] for row in hosts["rounds"]] == [5, 4, 5]
    assert [row["accepted"] for row in hosts["rounds"]] == [4, 3, 4]
    assert (hosts["registered"], hosts["late"]) == (6, 1)
    assert hosts["unanswered"] == {"offline": 1}
    assert hosts["turned_away"] == {"no such key": 1}
    four = hosts["devices"]["4"]
    assert (four["answered"], four["unanswered"], four["late"]) == (2, {"offline": 1}, 1)


def test_payloads_belong_to_who_sent_them_and_sums_to_all(write: Write) -> None:
    hosts = hosts_in(write, hosts_run())
    up = {number: row["payload_up_bytes"] for number, row in hosts["devices"].items()}
    assert up == {"1": 3 * 1204, "4": 2 * 1198, "6": 0, "7": 3 * 1210, "8": 0, "9": 3 * 1201}
    assert hosts["devices"]["6"]["transport_up_bytes"] == 3 * 5006, "idle, but it polls"
    for name in BYTES:
        whole = sum(row[name] for row in hosts["devices"].values())
        assert hosts[name] == whole == sum(row[name] for row in hosts["rounds"])


def test_payloads_that_cannot_be_told_apart_are_nobodys_but_are_counted(write: Write) -> None:
    odd = replace(round_(1), payload_up_bytes=[10, 20], payload_down_bytes=[5])
    hosts = hosts_in(write, [started(), hosts_round(1), odd])
    assert {row["payload_up_bytes"] for row in hosts["devices"].values()} == {0}
    assert (hosts["payload_up_bytes"], hosts["payload_down_bytes"]) == (30, 5)


def test_a_round_that_was_lost_with_the_server_does_not_count(write: Write) -> None:
    begun = [started(), hosts_round(1), round_(1), hosts_round(2, gone="late"), round_(2), hosts_round(3)]
    again = [started(), RunResumed(1), hosts_round(2), round_(2)]
    hosts = hosts_in(write, [*begun, *again])
    assert [row["round"] for row in hosts["rounds"]] == [1, 2]
    assert hosts["unanswered"] == {}
    assert hosts["devices"]["4"]["answered"] == 2


def test_a_server_that_still_waits_has_hosts_without_rounds(write: Write) -> None:
    summary = read_summary(
        write([started(), DeviceSeen(0, "online"), DeviceSeen(1, "refused", "old version")])
    )
    hosts = to_json(summary)["hosts"]
    assert (hosts["registered"], hosts["rounds"], hosts["turned_away"]) == (None, [], {"old version": 1})
    page = render(summary)
    assert "Devices: no round across hosts is complete yet." in page
    assert "Turned away: 1 old version." in page


def test_the_page_has_a_table_with_all_first_and_two_figures(write: Write) -> None:
    summary = read_summary(write(hosts_run()))
    grid = devices(summary)
    assert [row[0] for row in grid.rows] == ["all", "1", "4", "6", "7", "8", "9"]
    assert grid.rows[0][-1] == grid.rows[2][-1] == "1 offline"
    assert dict(zip(grid.head, grid.rows[3], strict=True))["Socket to payload"] == "–"
    page = render(summary)
    assert "Of 6 registered devices 4 to 5 were online when a round closed" in page
    assert re.search(r"on the sockets for .* of payload, [0-9.]+ to 1", page)
    assert "11 of 12 replies came in time" in page
    assert "Replies that came in a later round and were refused: 1." in page


def test_the_figures_need_two_rounds(write: Write) -> None:
    names = {plot.name for plot in plots(read_summary(write(hosts_run()[:6])))}
    assert names.isdisjoint({"online-by-round", "transport-by-round"})


def test_the_terminal_says_it_too(write: Write) -> None:
    shown = StringIO()
    print_result(Console(file=shown, width=200), read_summary(write(hosts_run())))
    assert "devices: 6 registered, 4 to 5 online" in shown.getvalue()
    assert "turned away: 1 no such key" in shown.getvalue()


@pytest.mark.parametrize("why", ["\x1b[2J\x07 gone", "x" * 5000, "<b>bold</b>", "[red]no"])
def test_what_a_device_says_is_short_harmless_text(write: Write, why: str) -> None:
    summary = read_summary(write([started(), hosts_round(1, gone=why), round_(1)]))
    (said,) = to_json(summary)["hosts"]["unanswered"]
    assert len(said) <= 120
    assert said.isprintable()
    assert "<b>" not in render(summary)
    shown = StringIO()
    print_result(Console(file=shown, width=300, force_terminal=True, color_system=None), summary)
    assert f"1 {said}" in shown.getvalue()
    assert "\x1b[2J" not in shown.getvalue()


def test_a_thousand_devices_with_a_thousand_reasons_stay_readable(write: Write) -> None:
    many = HostsRound(
        round=1,
        online=1000,
        registered=1000,
        accepted=[],
        unanswered={str(device): f"my own reason {device}" for device in range(1000)},
        transport_up_bytes={str(device): 1000 for device in range(1000)},
    )
    summary = summarise(
        [
            {"event": event.kind, **{name: getattr(event, name) for name in event.__slots__}}
            for event in (many, round_(1))
        ]
    )
    hosts = to_json(summary)["hosts"]
    assert len(hosts["unanswered"]) == 21
    assert hosts["unanswered"]["other reasons"] == 980
    assert all(len(note) < 400 for note in hosts_notes(summary.hosts))
    page = render(summary)
    assert "<details><summary>Every device as a table" in page
    assert page.count('<tr><th scope="row">') >= 1001
