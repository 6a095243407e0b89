"""A device's signature on its requests, by the server's clock: a device's own may be wrong by any amount."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

NOTICED = 2.0
"""Seconds of difference from which a clock is corrected; the server names whole seconds."""


class Signing:
    """Adds key, time and signature to every request of Flower's client.

    Args:
        key: of the device.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = public_key_to_bytes(key.public_key())
        self._named = b64encode(self.public).decode("ascii")
        self._ahead = timedelta(0)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Sign, send, and look at the server's clock; what was refused for a wrong one is sent once more."""
        self._sign(context.request)
        response = call_next(context)
        if self._corrected(response) and response.status_code == httpx.codes.UNAUTHORIZED:
            response.close()
            self._sign(context.request)
            response = call_next(context)
        return response

    def _sign(self, request: httpx.Request) -> None:
        time = (datetime.now(timezone.utc) + self._ahead).isoformat()
        signature = sign_message(self._key, time.encode("ascii"))
        request.headers[FLEET_HTTP_PUBLIC_KEY_HEADER] = self._named
        request.headers[TIMESTAMP_HEADER] = time
        request.headers[FLEET_HTTP_SIGNATURE_HEADER] = b64encode(signature).decode("ascii")

    def _corrected(self, response: httpx.Response) -> bool:
        """Return whether the server's clock turned out to be another one."""
        try:
            there = parsedate_to_datetime(response.headers["date"])
        except (KeyError, ValueError, TypeError):
            return False
        ahead = there - datetime.now(timezone.utc)
        if abs((ahead - self._ahead).total_seconds()) < NOTICED:
            return False
        self._ahead = ahead
        return True
