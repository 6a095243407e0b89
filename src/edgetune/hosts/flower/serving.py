"""The server's end of the link: Flower's Fleet API behind TLS, in a thread of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import uvicorn
from fastapi import FastAPI
from flwr.supercore.error import http_error_translator
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from edgetune.core.errors import ConfigError, HostError
from edgetune.hosts.flower.gate import Gate, Returned
from edgetune.hosts.flower.meter import Meter, metered
from edgetune.hosts.flower.superlink import SuperLink
from edgetune.hosts.link import Carried

PATIENCE = 30.0
"""Seconds that the thread has to begin."""
SELDOM, MANY, STRANGERS = 60.0, 1000, 20
"""Seconds until the same refusal is told again, how many are remembered, and how many of strangers are told in them."""
KEEP_ALIVE = 90
"""Seconds that a connection without requests stays open: longer than between two looks, which need no handshake."""


class Serving:
    """A link that listens (`hosts.link.Link`); entered, it does.

    Args:
        keys: public key of every device, PEM.
        listen: host and port.
        certificate: certificate and key; None serves without TLS.
        token: of the status.
        status: makes the answer to whoever has the token.

    Raises:
        ConfigError: if the address cannot be listened on.
    """

    def __init__(
        self,
        keys: Mapping[int, bytes],
        listen: tuple[str, int],
        certificate: tuple[Path, Path] | None,
        *,
        token: str | None,
        status: Callable[[], dict[str, Any]],
    ) -> None:
        self._link, self._meter = SuperLink(keys), Meter()
        self._refusals, self._said = (
            deque[tuple[int | None, str]](maxlen=MANY),
            dict[tuple[int | None, str], float](),
        )
        self._since, self._strangers = time.monotonic(), 0
        self._socket = _listening(*listen)
        gate = Middleware(
            Gate, link=self._link, meter=self._meter, status=status, token=token, refused=self._refuse
        )
        app = FastAPI(
            docs_url=None, redoc_url=None, openapi_url=None,
            middleware=[
                gate,
                Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
                Middleware(ProtobufTranslationMiddleware),
                Middleware(NodeAuthMiddleware),
                Middleware(Returned, link=self._link),
            ],
        )  # fmt: skip
        app.state.linkstate_factory = self._link.factory
        app.state.enable_supernode_auth = True
        app.include_router(router)
        signed, key = certificate or (None, None)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, http=metered(self._meter), log_config=None, access_log=False, lifespan="off", ws="none",
                loop="asyncio", timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=1,
                ssl_certfile=signed, ssl_keyfile=key,
            )
        )  # fmt: skip
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="link", daemon=True
        )

    @property
    def port(self) -> int:
        """Number of the port."""
        port: int = self._socket.getsockname()[1]
        return port

    def __enter__(self) -> Serving:
        """Listen."""
        self._thread.start()
        until = time.monotonic() + PATIENCE
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > until:
                raise HostError("the server's network thread did not begin", where=f"port {self.port}")
            time.sleep(0.01)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listen no more."""
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        self._socket.close()

    def sessions(self) -> Mapping[int, str]:
        """Return the devices that are there, with the moment that they came."""
        return self._link.sessions()

    def send(self, device: int, message: bytes) -> str:
        """Leave a message for a device and return its ticket."""
        return self._link.send(device, message)

    def replies(self, tickets: Collection[str]) -> dict[str, bytes]:
        """Return the replies that are there, each once."""
        return self._link.replies(tickets)

    def forget(self, tickets: Collection[str]) -> None:
        """Take messages back."""
        self._link.forget(tickets)

    def withdraw(self, tickets: Collection[str]) -> set[str]:
        """Take back what has not been fetched yet, and say what that is."""
        return self._link.withdraw(tickets)

    def carried(self) -> dict[int, Carried]:
        """Return the bytes on the sockets, by device."""
        return self._meter.carried()

    def turned_away(self) -> list[tuple[int | None, str]]:
        """Return who was turned away since this was asked last, and why; the same not twice in a minute."""
        return [self._refusals.popleft() for _ in range(len(self._refusals))]

    def _refuse(self, device: int | None, why: str) -> None:
        now = time.monotonic()
        if now - self._since >= SELDOM:
            self._since, self._strangers = now, 0
        if now - self._said.get((device, why), -SELDOM) >= SELDOM:
            if len(self._said) >= MANY:  # strangers without number make no server grow
                self._said.clear()
            self._said[device, why] = now
            self._strangers += device is None
            if device is None and self._strangers > STRANGERS:  # nor its log: keys are made by the thousand
                return
            self._refusals.append((device, why))


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen: {getattr(error, 'strerror', None) or error}",
            where=f"{host}:{port}",
            hint="another --listen, or end what listens there",
        ) from error
    # asyncio sets this on sockets that name their protocol, which `create_server`'s do not: head and body of an answer
    # are two segments, and the second would wait 40 ms for a delayed acknowledgement. Connections inherit it.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
