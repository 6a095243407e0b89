"""The figures of a run across hosts: who was there, and what the sockets carried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgetune.report import axis, svg, units
from edgetune.report.host_grids import ratio
from edgetune.report.summary import Summary
from edgetune.report.svg import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def online_by_round(summary: Summary) -> Plot | None:
    """Draw the devices that were online when a round closed, and those whose reply came in time."""
    if summary.hosts is None or len(summary.hosts.rounds) < 2:
        return None
    rounds = [done.event for done in summary.hosts.rounds]
    numbers, online = [one.round for one in rounds], [one.online for one in rounds]
    most = max(one.registered for one in rounds)

    def draw(axes: Axes) -> None:
        axes.plot(numbers, [one.registered for one in rounds], "--", color=svg.GREEN, label="registered")
        axes.plot(numbers, online, "o-", markersize=3.5, color=svg.BLUE, label="online")
        heard = [len(one.accepted) for one in rounds]
        axes.plot(numbers, heard, "x", color=svg.ORANGE, label="replies in time")
        axes.set(xlabel="round", ylabel="devices")
        axes.set_ylim(0, 1.1 * max(most, *online, *heard, 1))
        axis.whole_ticks(axes)
        axes.locator_params(axis="y", integer=True, nbins=6)
        axis.legend(axes)

    low, high = min(online), max(online)
    there = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    title = f"Of {most:,} registered devices {there} were online when a round closed"
    return Plot("online-by-round", title, svg.drawn("online-by-round", 2.6, draw))


def transport_by_round(summary: Summary) -> Plot | None:
    """Draw bytes of payload and on the sockets by round, both ways and all devices."""
    if summary.hosts is None or len(summary.hosts.rounds) < 2 or not summary.hosts.carried.transport:
        return None
    rounds = summary.hosts.rounds
    numbers = [done.event.round for done in rounds]

    def draw(axes: Axes) -> None:
        carried = [done.carried.transport for done in rounds]
        payload = [done.carried.payload for done in rounds]
        axes.plot(numbers, carried, "o-", markersize=3.5, color=svg.ORANGE, label="on the sockets")
        axes.plot(numbers, payload, "o-", markersize=3.5, color=svg.BLUE, label="payload")
        axes.set(xlabel="round", ylabel="bytes a round, all devices")
        axes.set_ylim(0, 1.1 * max(*carried, *payload, 1))
        axis.whole_ticks(axes)
        axes.yaxis.set_major_formatter(axis.tick(units.size_unrounded))
        axis.legend(axes)

    whole = summary.hosts.carried
    sizes = f"{units.size(whole.transport)} on the sockets for {units.size(whole.payload)} of payload"
    title = f"{sizes}, {ratio(whole)} to 1" if whole.payload else sizes
    return Plot("transport-by-round", title, svg.drawn("transport-by-round", 2.6, draw))
