"""What a connection carried stays in its device's account, however it ends."""

from __future__ import annotations

import socket
import sys

import pytest

pytest.importorskip("flwr")
from edgetune.hosts.flower.meter import Meter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts bytes of sockets")


def test_a_connection_that_is_closed_before_it_is_said_keeps_its_bytes() -> None:
    meter = Meter()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for round in (1, 2):
            here = socket.create_connection(listening.getsockname())
            there, client = listening.accept()
            meter.opened(client, there)
            meter.named(client, 7)
            here.sendall(b"x" * 1000)
            while len(there.recv(1000, socket.MSG_PEEK)) < 1000:
                pass
            if round == 1:  # what was told once, here of a round, is not taken back either
                meter.seen(client)
            before = meter.carried()[7]
            assert before.up == 1000 * round
            there.close()  # as the transport under TLS is, before its protocol hears of it
            assert meter.carried()[7] == before
            meter.closed(client)
            assert meter.carried()[7] == before
            here.close()


def test_a_connection_of_nobody_is_nobodys() -> None:
    meter = Meter()
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()),
    ):
        there, client = listening.accept()
        with there:
            meter.opened(client, there)
            meter.seen(client)
            meter.closed(client)
    assert meter.carried() == {}
