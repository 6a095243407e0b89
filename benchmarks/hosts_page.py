"""The page of `benchmarks/hosts.py`: what was measured, as Markdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HEAD = """# Devices on other hosts, measured on one

Written by `make bench-hosts`; do not edit. Server and devices are processes of `edgetune server` and `edgetune device`
with TLS and keys, on the loopback of one machine ({machine}). Bytes are exact; times are of a machine that others
shared.
"""


def first_text(found: dict[str, Any]) -> str:
    """Say how soon a device computes."""
    arrival, fresh = found["arrival"], found["fresh"]
    later, pulls = sorted(arrival[1:]), f"{min(found['pull']):.3f} to {max(found['pull']):.3f}"
    libraries = fresh["whole"] - fresh["load"] - fresh["forward"]
    return f"""
## From a message to the first forward pass

A base of {found["weights"] / 1e6:.0f} M weights (a Llama with random ones, float32), one thread. The device loads it
once, when it is told of the run: {found["load"]:.1f} s.

| | seconds |
|---|---|
| resident: the look that finds the message, with all of it | {pulls} |
| resident: from there to the first forward pass, first message | {arrival[0]:.3f} |
| the same, {len(later)} later messages | {later[0]:.3f} to {later[-1]:.3f} |
| a process started for a message: interpreter, torch, transformers | {libraries:.1f} |
| the same: load of the base, from the page cache | {fresh["load"]:.1f} |
| the same, until a forward pass has ended | {fresh["whole"]:.1f} |

Flower's own SuperNode starts a process for every message; its price is the last three lines, measured with `python -c`.
"""


def rounds_text(found: list[dict[str, Any]]) -> str:
    """Say how many rounds there are in a second."""
    rows = "\n".join(
        f"| {one['devices']} | {one['a_second']:.1f} | {one['median']:.3f} | {one['longest']:.3f} "
        f"| {one['waited']:.3f} | {one['server_cpu']:.3f} | {one['device_cpu']:.3f} |"
        for one in found
    )
    return f"""
## Rounds a second

FedKSeed with one local step of one record on the embedded base, nothing evaluated.

| devices | rounds a second | s a round, median | longest | of them waiting | CPU s a round, server | a device |
|---|---|---|---|---|---|---|
{rows}
"""


def bytes_text(found: list[dict[str, Any]]) -> str:
    """Say what a round carries."""
    rows = "\n".join(
        f"| {one['method']} | {way} | {one[way]['payload']:,} | {one[way]['transport']:,} "
        f"({one[way]['least']:,} to {one[way]['most']:,}) | {one[way]['transport'] - one[way]['payload']:,} "
        f"| {one['requests']} |"
        for one in found
        for way in ("up", "down")
    )
    return f"""
## Payload, and bytes on the socket

A device and a round; `up` is from the device. Those on the socket are what the server's kernel counts, TLS included.

| method | way | payload | on the socket, median (range) | beside the payload | requests |
|---|---|---|---|---|---|
{rows}
"""


def idle_text(found: dict[str, Any]) -> str:
    """Say what a device that waits costs."""
    greeting, rate = found["handshake"], found["up"] + found["down"]
    shown = f"{found['up']:.0f} B/s up and {found['down']:.0f} B/s down, so {rate * 86400 / 1e6:.0f} MB a day"
    return f"""
## A device that is not asked

For {found["seconds"]:.0f} s, once it looks as seldom as it ever does (every {found["later"]:g} s; the first
look after a message comes after {found["soon"]:g} s): {shown}, over {found["connections"]} connection, with
{100 * found["cpu"]:.1f} % of a core.
A TLS handshake, which only a new connection needs: {greeting["up"]:,} B up, {greeting["down"]:,} B down.
"""


def many_text(found: list[dict[str, Any]]) -> str:
    """Say what a device costs its machine and the server."""
    rows = "\n".join(
        f"| {one['devices']} | {one['private_mb']:.0f} | {one['proportional_mb']:.0f} "
        f"| {one['resident_mb']:.0f} "
        f"| {one['server_mb']:.0f} | {one['server_files']} | {one['server_cpu']:.2f} | {one['round_seconds']:.2f} "
        f"| {one['start_seconds']:.0f} |"
        for one in found
    )
    few, most = found[0], found[-1]
    more = most["devices"] - few["devices"]
    memory = (most["server_mb"] - few["server_mb"]) / more
    cpu = (most["server_cpu"] - few["server_cpu"]) / more
    return f"""
## Many devices on this machine

All are asked in every round; the base is memory-mapped and shared. Memory in MB, median of the devices: private is
what one more process costs, proportional shares what several map. The server's is private.

| devices | private | proportional | resident | server | its open files | its CPU s a round | s a round | start, s |
|---|---|---|---|---|---|---|---|---|
{rows}

A further device costs the server {memory:.2f} MB and {1000 * cpu:.0f} ms of CPU a round that it is asked in.
"""


def imports_text(found: list[list[Any]]) -> str:
    """Say where a device's memory goes."""
    rows, before = list[str](), (0.0, 0.0)
    for name, resident, anonymous in found:
        rows.append(f"| {name} | {resident - before[0]:.0f} | {anonymous - before[1]:.0f} |")
        before = resident, anonymous
    table = "\n".join([*rows, f"| in all | {before[0]:.0f} | {before[1]:.0f} |"])
    return f"""
## Where a device's memory goes

A fresh process, MB that each thing adds; anonymous memory is no process's but its own.

| | resident | anonymous |
|---|---|---|
{table}
"""


def endurance_text(found: dict[str, Any]) -> str:
    """Say what a long run leaves behind."""
    picked = [one for one in found["rows"] if one["round"] % 200 < 50] or found["rows"]
    rows = "\n".join(
        f"| {one['round']} | {one['server_mb']:.1f} | {one['server_files']} "
        f"| {one['device_mb']:.1f} | {one['device_files']} "
        f"| {one['files'].get('events.jsonl', 0) / 1e3:.0f} | {one['files'].get('tuned.ledger', 0) / 1e3:.1f} |"
        for one in picked
    )
    server, device = found["server_slope"], found["device_slope"]
    return f"""
## {found["rounds"]:,} rounds

Two devices, {found["seconds"]:.0f} s. Resident memory in MB, sizes in kB.

| round | server | open files | device | open files | events.jsonl | ledger |
|---|---|---|---|---|---|---|
{rows}

Slope after round 200, least squares with its standard error: server {server[0]:+.2f} ± {server[1]:.2f} kB a round,
device {device[0]:+.2f} ± {device[1]:.2f} kB a round.
"""


TEXTS: dict[str, Callable[[Any], str]] = {
    "first": first_text,
    "rounds": rounds_text,
    "bytes": bytes_text,
    "idle": idle_text,
    "many": many_text,
    "imports": imports_text,
    "endurance": endurance_text,
}
