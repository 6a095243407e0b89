"""Bytes on the sockets of a server, by device: what the kernel counts, encryption and repeated requests included."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgetune.hosts.link import Carried

COUNTERS = struct.Struct("=QQ")
"""Of Linux's tcp_info: bytes that the other side has acknowledged, bytes received."""
STRANGE = 30.0
"""Seconds that a connection may be nobody's: a stranger who sends a request byte by byte holds none for ever."""
PLACE = 120
"""Where they stand in it, bytes."""


class Meter:
    """Adds up what connections carried.

    A connection is a device's once a request on it names one. Where the system counts nothing (it is not Linux),
    nothing is told.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = dict[Any, socket.socket]()
        self._whose = dict[Any, int]()
        self._past = dict[int, Carried]()

    def opened(self, client: Any, connection: socket.socket) -> None:
        """Take note of a connection; `client` is its address and port."""
        with self._lock:
            self._open[client] = connection

    def named(self, client: Any, device: int) -> None:
        """Say whose connection it is."""
        with self._lock:
            self._whose[client] = device

    def closed(self, client: Any) -> None:
        """Add what a connection carried to its device's account."""
        with self._lock:
            connection, device = self._open.pop(client, None), self._whose.pop(client, None)
            if connection is not None and device is not None:
                self._past[device] = _sum(self._past.get(device), counted(connection))

    def known(self, client: Any) -> bool:
        """Say whether a connection is a device's."""
        with self._lock:
            return client in self._whose

    def carried(self) -> dict[int, Carried]:
        """Return the bytes so far, by device."""
        with self._lock:
            found = dict(self._past)
            for client, device in self._whose.items():
                connection = self._open.get(client)
                if connection is not None:
                    found[device] = _sum(found.get(device), counted(connection))
            return found


def counted(connection: socket.socket) -> Carried:
    """Return what the kernel says that a connection of this end carried; nothing where it does not say."""
    option = getattr(socket, "TCP_INFO", None)
    try:
        said = connection.getsockopt(socket.IPPROTO_TCP, option, 256) if option is not None else b""
    except OSError:  # it is closed
        return Carried()
    if len(said) < PLACE + COUNTERS.size:
        return Carried()
    acknowledged, received = COUNTERS.unpack_from(said, PLACE)
    return Carried(up=received, down=acknowledged)


def metered(meter: Meter) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol of a connection, which tells a meter of its socket."""

    class Metered(HttpToolsProtocol):
        """A connection whose bytes are counted."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            meter.opened(self.client, transport.get_extra_info("socket"))
            self._nobodys = self.loop.call_later(STRANGE, self._unless_known)

        def connection_lost(self, exc: Exception | None) -> None:
            self._nobodys.cancel()
            meter.closed(self.client)
            super().connection_lost(exc)

        def _unless_known(self) -> None:
            if not meter.known(self.client):
                self.transport.abort()

    return Metered


def _sum(one: Carried | None, other: Carried) -> Carried:
    return other if one is None else Carried(one.up + other.up, one.down + other.down)
