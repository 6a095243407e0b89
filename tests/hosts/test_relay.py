"""The relay is as slow and as late as it is told to be, and counts what a plain socket sent."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from relay import EVERY, RESET, Relay


def exactly(peer: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count and (piece := peer.recv(count - len(data))):
        data += piece
    return bytes(data)


@contextmanager
def echo() -> Iterator[str]:
    """A server that sends back whatever comes; yields its address."""

    def answer(peer: socket.socket) -> None:
        with peer:
            while data := peer.recv(1 << 16):
                peer.sendall(data)

    def run() -> None:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=run)
        thread.start()
        yield "{}:{}".format(*server.getsockname())
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    peer = socket.create_connection((host, int(port)), timeout=30)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def test_bytes_arrive_as_they_were_sent_and_are_counted_by_connection_and_way(tmp_path: Path) -> None:
    sent = [os.urandom(300_000), os.urandom(70_001)]
    with echo() as server, Relay(server, tmp_path / "counts.json") as relay:
        for data in sent:
            with connect(relay.address) as peer:
                writing = threading.Thread(target=peer.sendall, args=(data,))
                writing.start()
                assert exactly(peer, len(data)) == data
                writing.join()
                peer.shutdown(socket.SHUT_WR)
                assert peer.recv(1) == b""  # the end is passed on, both ways
        time.sleep(2 * EVERY)
        assert relay.counts() == {"up": 370_001, "down": 370_001}
        found = relay.connections()
        assert [(one.up, one.down) for one in found] == [(300_000, 300_000), (70_001, 70_001)]
        assert all(one.closed is not None and one.closed >= one.opened for one in found)


def test_the_rate_is_that_of_the_link_however_many_connections_share_it(tmp_path: Path) -> None:
    rate, count = 1_000_000, 30_000
    with echo() as server, Relay(server, tmp_path / "counts.json", rate=rate) as relay:
        peers = [connect(relay.address) for _ in range(2)]
        begin = time.monotonic()
        for peer in peers:
            peer.sendall(bytes(count))
        assert all(len(exactly(peer, count)) == count for peer in peers)
        seconds = time.monotonic() - begin
        for peer in peers:
            peer.close()
    least = 2 * count * 8 / rate
    assert least <= seconds < 4 * least  # up and back at the same time, the last piece after it


def test_a_message_is_late_by_the_delay_each_way_and_so_is_the_greeting(tmp_path: Path) -> None:
    with (
        echo() as server,
        Relay(server, tmp_path / "counts.json", delay=100) as relay,
        connect(relay.address) as peer,
    ):
        begin = time.monotonic()
        peer.sendall(b"first")
        assert exactly(peer, 5) == b"first"
        first = time.monotonic() - begin
        begin = time.monotonic()
        peer.sendall(b"second")
        assert exactly(peer, 6) == b"second"
        second = time.monotonic() - begin
    assert 0.4 <= first < 2
    assert 0.2 <= second < 1


def test_pieces_that_are_on_their_way_do_not_wait_for_each_other(tmp_path: Path) -> None:
    with (
        echo() as server,
        Relay(server, tmp_path / "counts.json", delay=100) as relay,
        connect(relay.address) as peer,
    ):
        begin = time.monotonic()
        for _ in range(10):
            peer.sendall(b"x")
            time.sleep(0.02)
        assert exactly(peer, 10) == 10 * b"x"
        assert (
            time.monotonic() - begin < 1.2
        )  # 0.2 to send, 0.2 for the greeting, 0.2 for the way; not ten times that


def test_a_connection_that_breaks_on_one_side_breaks_on_the_other(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = "{}:{}".format(*server.getsockname())
        with Relay(to, tmp_path / "counts.json") as relay, connect(relay.address) as peer:
            peer.sendall(b"?")
            there, _ = server.accept()
            there.recv(1)
            there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            there.close()  # a reset
            with pytest.raises(ConnectionResetError):
                peer.recv(1)


def test_it_ends_with_whoever_started_it_and_keeps_its_counts(tmp_path: Path) -> None:
    path = tmp_path / "counts.json"
    with echo() as server:
        relay = Relay(server, path).__enter__()
        with connect(relay.address) as peer:
            peer.sendall(b"12345")
            exactly(peer, 5)
            process = relay._process
            assert process is not None
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 0
        assert process.stdout is not None
        process.stdout.close()
    assert json.loads(path.read_text())["up"] == 5
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, signal.SIG_DFL)
