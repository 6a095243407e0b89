"""What `benchmarks/hosts.py` measures of bytes: rounds on the socket, a device that nobody asks, a TLS handshake."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import time
from pathlib import Path
from typing import Any

from relay import Relay

from edgetune.hosts.device import LATER, SOON
from hosts_fleet import Federation, median, timed

LATEST = 25.0
"""Seconds after which a device that is not asked looks as seldom as it ever does."""


def transport(rounds: int = 12) -> list[dict[str, Any]]:
    """Measure what a device's round carries: the method's payload, and what passes on the socket."""
    return [_carried("fedkseed", rounds), _carried("fedit", rounds)]


def _carried(method: str, rounds: int) -> dict[str, Any]:
    with Federation(2, rounds, method) as federation:
        federation.join(2, timed=True)
        federation.ended()
        done, hosts = federation.events("round")[3:-1], federation.events("hosts_round")[3:-1]
        said = [json.loads(one) for one in re.findall(r"^timed (.*)$", federation.running[0].said, re.M)]
    found: dict[str, Any] = {"method": method, "requests": median([one["requests"] for one in said[3:-1]])}
    for way in ("up", "down"):
        payload = [one[f"payload_{way}_bytes"][0] for one in done]
        passed = [one[f"transport_{way}_bytes"]["0"] for one in hosts]
        found[way] = {
            "payload": median(payload),
            "transport": median(passed),
            "least": min(passed),
            "most": max(passed),
        }
    return found


def idle(seconds: float = 60.0) -> dict[str, Any]:
    """Measure what a device that is connected and not asked sends and gets."""
    with Federation(2, 1) as federation:  # the second device never comes, so that no round begins
        counts = federation.folder / "relay.json"
        with Relay(f"127.0.0.1:{federation.port}", counts) as relay:
            (device,) = federation.join(address=relay.address)
            device.wait_for("records, ", 120)
            time.sleep(LATEST)
            begin, spent = relay.counts(), device.footprint().cpu
            time.sleep(seconds)
            end, cpu = relay.counts(), device.footprint().cpu - spent
            connections = len(relay.connections())
            handshake = _handshake(federation, relay)
            device.stop()
    return {
        "seconds": seconds,
        "up": (end["up"] - begin["up"]) / seconds,
        "down": (end["down"] - begin["down"]) / seconds,
        "connections": connections,
        "cpu": cpu / seconds,
        "soon": SOON,
        "later": LATER,
        "handshake": handshake,
    }


def _handshake(federation: Federation, relay: Relay, count: int = 20) -> dict[str, float]:
    """Measure connections that are made and closed again: bytes through the relay, seconds without it."""
    authority = federation.folder / "certs" / "ca.pem"
    before = len(relay.connections())
    host, _, port = relay.address.rpartition(":")
    for _ in range(count):
        _greet(authority, (host, int(port)))
    time.sleep(1)
    passed = [one for one in relay.connections()[before:] if one.up > 300]
    seconds = [timed(lambda: _greet(authority, ("127.0.0.1", federation.port))) for _ in range(count)]
    return {
        "up": median([one.up for one in passed]),
        "down": median([one.down for one in passed]),
        "seconds": median(seconds),
    }


def _greet(authority: Path, address: tuple[str, int]) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    with (
        socket.create_connection(address, 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.version() == "TLSv1.3"
        secured.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            secured.recv(1)  # the server's session tickets belong to it
