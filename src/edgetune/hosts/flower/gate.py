"""What stands before Flower's handlers: strangers are turned away with a reason, and told to the run."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgetune.core.errors import EdgetuneError
from edgetune.hosts.flower.meter import Meter
from edgetune.hosts.flower.superlink import SuperLink
from edgetune.hosts.keys import fingerprint

STATUS = "/v1/edgetune/status"
USED = frozenset(
    f"/v1/fleet/{name}"
    for name in ("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages",
                 "pull-object", "push-object", "confirm-message-received")
)  # fmt: skip
"""What devices ask for; nothing else of Flower's answers."""
MOST = 2**31
"""Bytes of a request: what protobuf can hold."""
STRANGER = "this key is not registered with the server"
UNSIGNED = "the signature is not of this key, or older than five minutes by the server's clock"
ANOTHER = "its request names another device"
ELSEWHERE = "a request for what is not there"
Refused = Callable[["int | None", str], None]
"""Told who was turned away, None for a stranger, and why."""
Scope = dict[str, Any]


class Gate:
    """The outermost layer of the server.

    Args:
        app: what is behind it.
        link: knows the keys.
        meter: told whose connection is whose.
        status: makes the answer to whoever has the token.
        token: of the status; None answers nobody.
        refused: told of those who are turned away.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        link: SuperLink,
        meter: Meter,
        status: Callable[[], dict[str, Any]],
        token: str | None,
        refused: Refused,
    ) -> None:
        self._app, self._link, self._meter = app, link, meter
        self._status, self._token, self._refused = status, token, refused

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        if scope["path"] == STATUS:
            await self._told(request)(scope, receive, send)
            return
        if scope["path"] not in USED:
            self._refused(None, ELSEWHERE)
            await _no(404, ELSEWHERE)(scope, receive, send)
            return
        key = _key(request)
        device = self._link.device_of(key) if key else None
        if key is None or device is None:
            self._refused(None, f"{STRANGER}: {_shown(key)}" if key else "a request without a key")
            await _no(403, STRANGER)(scope, receive, send)
            return
        if not _signed(request, key):  # before a body is read that may be large
            self._refused(device, UNSIGNED)
            await _no(401, UNSIGNED)(scope, receive, send)
            return
        self._meter.named(scope["client"], device)
        if int(request.headers.get("content-length") or MOST) >= MOST:
            self._refused(device, "its message is too long, or does not say how long it is")
            await _no(413, f"a message has less than {MOST:,} bytes and says how many")(scope, receive, send)
            return

        async def seen(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start" and message["status"] == 401:
                self._refused(device, ANOTHER)
            await send(message)

        await self._app(scope, receive, seen)

    def _told(self, request: Request) -> Response:
        said = request.headers.get("authorization", "")
        if self._token is None or not hmac.compare_digest(said.encode(), f"Bearer {self._token}".encode()):
            return _no(401, "the token is not this server's")
        try:
            return Response(json.dumps(self._status()), media_type="application/json")
        except EdgetuneError as error:  # nothing has been written yet
            return _no(503, error.what)


class Returned:
    """Behind the authentication: a device that comes again was away, although nobody noticed.

    Flower would turn it away until its former process has given no sign of life for long enough.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], *, link: SuperLink) -> None:
        self._app, self._link = app, link

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Let the node go offline first."""
        asked = scope.get("state", {}).get("protobuf_request")
        if isinstance(asked, ActivateNodeRequest):
            self._link.gone(asked.public_key)
        await self._app(scope, receive, send)


def _key(request: Request) -> bytes | None:
    try:
        return base64.b64decode(request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
    except (KeyError, ValueError, binascii.Error):
        return None


def _signed(request: Request, key: bytes) -> bool:
    """Say whether the time in a request is signed with a key, and not longer ago than Flower allows."""
    try:
        time, signature = request.headers[TIMESTAMP_HEADER], request.headers[FLEET_HTTP_SIGNATURE_HEADER]
        age = (datetime.now(timezone.utc) - datetime.fromisoformat(time)).total_seconds()
        recent = -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        signed = base64.b64decode(signature, validate=True)
        return recent and verify_signature(bytes_to_public_key(key), time.encode("ascii"), signed)
    except (KeyError, ValueError, TypeError):
        return False


def _shown(key: bytes) -> str:
    try:
        return fingerprint(key)
    except EdgetuneError:
        return "no key of a device"


def _no(code: int, why: str) -> JSONResponse:
    return JSONResponse({"detail": why}, status_code=code)
