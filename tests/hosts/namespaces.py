"""A network of a server and devices on one machine: a namespace each, own addresses, links that are slow and late.

Needs root and `ip`; `why_not()` says what is missing. Nothing of it is in the machine's own network: the switch has a
namespace too, and whatever is left by a test that was killed is removed when the next one begins.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from processes import alive, kill, mark
from relay import Relay

FIRST = "edgetune"
STALE = re.compile(rf"^{FIRST}-(\d+\.\d+)-")
NET = "10.207.83"
"""Network of the server, .1, and the devices, .10 and on: seen in these namespaces only."""
BURST = 4000
"""Bytes that a limited link sends at once."""


def run(*words: str) -> str:
    """Run a command; returns what it says.

    Raises:
        RuntimeError: with what it says instead.
    """
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def why_not() -> str:
    """Return why this machine cannot have such networks, or nothing."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"no {' and no '.join(missing)} here (iproute2)"
    name = f"{FIRST}-{mark()}-trial"
    try:
        _add(name)
        run("ip", "-n", name, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "p0")
        run("tc", "-n", name, "qdisc", "add", "dev", "eth0", "root", *_limit(1_000_000))
    except RuntimeError as error:
        return f"this kernel does not allow it: {error}"
    finally:
        remove(name)
    return ""


@dataclass(frozen=True, slots=True)
class Counted:
    """Bytes on an interface, with the headers of Ethernet, IP and TCP."""

    received: int
    sent: int


@dataclass(frozen=True)
class Host:
    """A machine of the network.

    Args:
        name: of its namespace.
        address: IPv4.
    """

    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """Put before a command, it runs there; the process is the command's own, not a parent of it."""
        return ["ip", "netns", "exec", self.name]

    def counted(self) -> Counted:
        """Return the bytes on its link so far."""
        folder = "/sys/class/net/eth0/statistics"
        said = run(*self.prefix, "cat", f"{folder}/rx_bytes", f"{folder}/tx_bytes").split()
        return Counted(*map(int, said))

    def unplug(self) -> None:
        """Take its cable out: what is sent is lost, and nobody is told."""
        run("ip", "-n", self.name, "link", "set", "eth0", "down")

    def plug(self) -> None:
        """Put it in again."""
        run("ip", "-n", self.name, "link", "set", "eth0", "up")


@dataclass
class Network:
    """A server, its devices, and their links."""

    server: Host
    devices: list[Host]
    delay: float
    folder: Path
    delayed: bool
    _relays: contextlib.ExitStack = field(repr=False)
    _ways: dict[tuple[int, int], Relay] = field(default_factory=dict, repr=False)

    @property
    def names(self) -> list[str]:
        """Every address that a device may call the server by: a certificate for it names them all."""
        return [self.server.address, "127.0.0.1"]

    def way(self, device: int, port: int) -> str:
        """Return HOST:PORT that reaches the server from a device.

        Where the kernel cannot delay, a relay in the device's namespace does, and the answer is its address.
        """
        to = f"{self.server.address}:{port}"
        if self.delayed or not self.delay:
            return to
        if (device, port) not in self._ways:
            counts = self.folder / f"relay-{device}-{port}.json"
            prefix, listen = self.devices[device].prefix, f"127.0.0.1:{port}"
            relay = Relay(to, counts, delay=self.delay, listen=listen, prefix=prefix)
            self._ways[device, port] = self._relays.enter_context(relay)
        return self._ways[device, port].address


@contextlib.contextmanager
def network(devices: int, folder: Path, *, rate: float = 1_000_000, delay: float = 100) -> Iterator[Network]:
    """Build a network for as long as the context lasts.

    Args:
        devices: how many.
        folder: of the relays' counts.
        rate: bits a second of each device's link, each way; the server's own has no limit.
        delay: milliseconds, each way.
    """
    sweep()
    first = f"{FIRST}-{mark()}"
    switch, names = f"{first}-switch", [f"{first}-server", *(f"{first}-{at}" for at in range(devices))]
    hosts = [Host(name, f"{NET}.{1 if at == 0 else 9 + at}") for at, name in enumerate(names)]
    try:
        _add(switch)
        run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "br0", "up")
        for at, host in enumerate(hosts):
            _join(switch, host, f"p{at}")
        delayed = bool(delay)
        for at, host in enumerate(hosts[1:], start=1):
            for name, device in ((host.name, "eth0"), (switch, f"p{at}")):
                delayed &= _slow(name, device, rate, delay)
        with contextlib.ExitStack() as relays:
            yield Network(hosts[0], hosts[1:], delay, folder, delayed, relays)
    finally:
        for name in [*names, switch]:
            remove(name)


def sweep() -> list[str]:
    """Remove the namespaces of tests that were killed, with what runs there; returns their names."""
    listed = [line.split()[0] for line in run("ip", "netns", "list").splitlines() if line.strip()]
    stale = [name for name in listed if (found := STALE.match(name)) and not alive(found[1])]
    for name in stale:
        remove(name)
    return stale


def remove(name: str) -> None:
    """Remove a namespace of this file, and end what runs there; it may be gone."""
    with contextlib.suppress(RuntimeError):
        for pid in run("ip", "netns", "pids", name).split():
            kill(int(pid))
    with contextlib.suppress(RuntimeError):
        run("ip", "netns", "delete", name)


def _add(name: str) -> None:
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")
    with contextlib.suppress(RuntimeError):  # IPv6 announces itself, and would be counted
        run("ip", "netns", "exec", name, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6")
        run("ip", "netns", "exec", name, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")


def _join(switch: str, host: Host, port: str) -> None:
    """Put a cable between a host and the switch."""
    _add(host.name)
    run("ip", "link", "add", "name", "eth0", "netns", host.name, "type", "veth", "peer", "name", port,
        "netns", switch)  # fmt: skip
    for name, device in ((host.name, "eth0"), (switch, port)):
        # Packets of the size that a wire has: larger ones would be counted with one header.
        run("ip", "-n", name, "link", "set", device, "gso_max_segs", "1")
        run("ip", "-n", name, "link", "set", device, "up")
    run("ip", "-n", switch, "link", "set", port, "master", "br0")
    run("ip", "-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")


def _limit(rate: float) -> list[str]:
    return ["tbf", "rate", f"{rate:.0f}bit", "burst", str(BURST), "latency", "400ms"]


def _slow(name: str, device: str, rate: float, delay: float) -> bool:
    """Limit what an interface sends; returns whether it delays it too."""
    add = ("tc", "-n", name, "qdisc", "add", "dev", device)
    if delay:
        with contextlib.suppress(RuntimeError):
            run(*add, "root", "handle", "1:", "netem", "delay", f"{delay:g}ms")
            if rate:
                run(*add, "parent", "1:", "handle", "10:", *_limit(rate))
            return True
    if rate:
        run(*add, "root", *_limit(rate))
    return False
