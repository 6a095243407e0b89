"""The network of the fleet's tests has the rate, the delay and the counters it says, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from namespaces import Host, network, run, sweep, why_not
from processes import Processes

WHY_NOT = why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)

SINK = """
import socket
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("ready", flush=True)
    while True:
        peer, _ = server.accept()
        with peer:
            while data := peer.recv(1 << 16):
                pass
            peer.sendall(b"!")
"""
SEND = """
import socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begin = time.monotonic()
with socket.create_connection((host, port), 30) as peer:
    peer.sendall(bytes(count))
    peer.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b"!"
print(time.monotonic() - begin)
"""
HELD = """
import pathlib, sys
from namespaces import network
with network(1, pathlib.Path(sys.argv[1])) as net:
    print(net.server.name, flush=True)
    input()
"""


def send(host: Host, to: str, count: int) -> float:
    """Send bytes from a host, wait until they have been received; returns the seconds."""
    address, _, port = to.rpartition(":")
    return float(run(*host.prefix, sys.executable, "-c", SEND, address, port, str(count)))


def sink(host: Host) -> subprocess.Popen[str]:
    words = [*host.prefix, sys.executable, "-c", SINK]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def listed() -> str:
    return run("ip", "netns", "list")


def test_a_link_has_its_rate_and_the_interface_counts_what_passed(tmp_path: Path) -> None:
    count = 100_000
    with network(2, tmp_path, rate=1_000_000, delay=0) as net:
        process = sink(net.server)
        before = [host.counted() for host in net.devices]
        seconds = send(net.devices[0], net.way(0, 7000), count)
        after = [host.counted() for host in net.devices]
        process.kill()
        process.communicate()
    ideal = count * 8 / 1_000_000
    assert 0.9 * ideal <= seconds <= 4 * ideal
    sent = after[0].sent - before[0].sent
    assert 1.03 * count <= sent <= 1.1 * count  # 66 bytes of headers on 1448
    assert after[1].sent - before[1].sent < 1000  # the other device's link carried nothing of it


def test_a_link_is_late_both_ways(tmp_path: Path) -> None:
    with network(1, tmp_path, rate=0, delay=100) as net:
        process = sink(net.server)
        way = net.way(0, 7000)
        assert way.rpartition(":")[0] in net.names
        assert net.way(0, 7000) == way
        seconds = send(net.devices[0], way, 10)
        process.kill()
        process.communicate()
    assert 0.4 <= seconds <= 2  # the greeting and the answer, there and back


def test_hosts_reach_each_other_by_their_own_addresses_and_nothing_else(tmp_path: Path) -> None:
    with network(1, tmp_path, rate=0, delay=0) as net:
        process = sink(net.server)
        assert send(net.devices[0], f"{net.server.address}:7000", 10) < 1
        routes = run("ip", "-n", net.devices[0].name, "route")
        process.kill()
        process.communicate()
    assert "default" not in routes
    assert len(routes.splitlines()) == 1


def test_a_command_of_a_namespace_is_the_process_itself_and_can_be_killed(tmp_path: Path) -> None:
    with network(1, tmp_path) as net, Processes(tmp_path) as processes:
        there = processes.start("version", "--version", prefix=net.devices[0].prefix)
        assert there.wait_for(r"^edgetune \d")
        assert there.wait() == 0
        words = [
            *net.devices[0].prefix,
            sys.executable,
            "-c",
            "import time; print('up', flush=True); time.sleep(600)",
        ]
        long = processes.start("long", prefix=words)
        long.wait_for("up")
        assert processes.alive() == [long.pid]
        assert run("ip", "netns", "pids", net.devices[0].name).split() == [str(long.pid)]
        long.kill()
        assert processes.alive() == []


def test_a_cable_can_be_taken_out_and_put_in_again(tmp_path: Path) -> None:
    with network(1, tmp_path, rate=0, delay=0) as net:
        process = sink(net.server)
        net.devices[0].unplug()
        with pytest.raises(RuntimeError, match="unreachable"):
            send(net.devices[0], net.way(0, 7000), 10)
        net.devices[0].plug()
        assert send(net.devices[0], net.way(0, 7000), 10) < 5
        process.kill()
        process.communicate()


def test_nothing_is_left_when_the_test_fails_with_processes_still_there(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), network(1, tmp_path) as net:  # noqa: PT012
        process = sink(net.server)
        names = [net.server.name, net.devices[0].name, net.server.name.replace("server", "switch")]
        assert all(name in listed() for name in names)
        raise ZeroDivisionError
    assert not any(name in listed() for name in names)
    assert process.wait(5) == -signal.SIGKILL
    process.communicate()


def test_what_a_killed_test_left_is_removed_by_the_next_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    there = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    words = [sys.executable, "-c", HELD, str(tmp_path)]
    process = subprocess.Popen(words, env=there, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    name = process.stdout.readline().strip()
    inside = subprocess.Popen(["ip", "netns", "exec", name, "sleep", "600"])
    time.sleep(0.2)
    sweep()
    assert name in listed()  # it is still somebody's
    process.kill()
    process.communicate()
    assert name in sweep()
    assert name not in listed()
    assert inside.wait(5) == -signal.SIGKILL
