"""The socket that a server of devices listens on."""

from __future__ import annotations

import socket

import pytest

pytest.importorskip("flwr")


def test_an_answer_in_two_parts_waits_for_no_acknowledgement() -> None:
    from edgetune.hosts.flower.serving import _listening

    with _listening("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
