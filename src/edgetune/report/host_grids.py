"""What a reader should know of the devices of other hosts: the table, and sentences."""

from __future__ import annotations

from edgetune.core.reasons import counted_reasons
from edgetune.report import units
from edgetune.report.grids import Grid
from edgetune.report.hosts import Carried, HostDevice, Hosts
from edgetune.report.summary import Summary


def devices(summary: Summary) -> Grid:
    """Return one row a device, that of all first; no rows for a run in one process or without a whole round."""
    hosts = summary.hosts
    if hosts is None or not hosts.devices:
        return Grid((), ())
    head = (
        *("Device", "Rounds answered", "Payload up", "Payload down", "Socket up", "Socket down"),
        *("Socket to payload", "Refused late", "Not answered"),
    )
    every = HostDevice(
        sum(one.answered for one in hosts.devices.values()),
        hosts.unanswered,
        sum(one.late for one in hosts.devices.values()),
        hosts.carried,
    )
    rows = [_row("all", every), *(_row(str(number), one) for number, one in hosts.devices.items())]
    return Grid(head, tuple(rows))


def hosts_notes(hosts: Hosts | None) -> list[str]:
    """Say who was there and what the network carried.

    Args:
        hosts: of a summary; None for a run in one process.

    Returns:
        One sentence a finding, without a full stop; none for a run in one process.
    """
    if hosts is None:
        return []
    notes = [_presence(hosts)]
    lost, late = counted_reasons(hosts.unanswered, most=5), sum(len(done.event.late) for done in hosts.rounds)
    if lost:
        notes.append(f"replies that did not come in time: {lost}")
    if late:
        notes.append(f"replies that came in a later round and were refused: {late:,}")
    if hosts.turned_away:
        notes.append(f"turned away: {counted_reasons(hosts.turned_away, most=5)}")
    if hosts.carried.transport:
        notes.append(
            f"the sockets carried {units.size(hosts.carried.transport)} for {units.size(hosts.carried.payload)} of "
            "payload, both ways and all devices"
        )
    return notes


def ratio(carried: Carried) -> str:
    """Return bytes on the socket by bytes of payload: `1.04`, `37`; a dash where either is missing."""
    if not carried.payload or not carried.transport:
        return units.MISSING
    value = carried.transport / carried.payload
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _presence(hosts: Hosts) -> str:
    if not hosts.rounds:
        return "devices: no round across hosts is complete yet"
    online = [done.event.online for done in hosts.rounds]
    low, high = min(online), max(online)
    there = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    answered = sum(one.answered for one in hosts.devices.values())
    asked = answered + sum(hosts.unanswered.values())
    return (
        f"devices: {hosts.registered:,} registered, {there} online at the close of a round, {answered:,} of {asked:,} "
        "replies came in time"
    )


def _row(name: str, one: HostDevice) -> tuple[str, ...]:
    sums = one.carried
    sizes = (
        *(sums.payload_up_bytes, sums.payload_down_bytes),
        *(sums.transport_up_bytes, sums.transport_down_bytes),
    )
    lost = counted_reasons(one.unanswered) or "none"
    return (name, f"{one.answered:,}", *map(units.size, sizes), ratio(sums), f"{one.late:,}", lost)
