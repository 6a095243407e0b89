"""Flower's Fleet client as a device uses it: one connection that stays, and errors that say why."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supernode.fleet_http_client import FleetHttpClient

from edgetune.core.errors import HostError, ModelError, UnreachableError
from edgetune.core.reasons import shortened
from edgetune.hosts.flower.signing import Signing

TIMEOUT = 30.0
"""Seconds without a byte after which a request is sent again."""
KEPT = 80.0
"""Seconds that a connection without requests is kept."""
LEAST, MOST = 0.5, 5.0
"""Seconds between two attempts to reach a server that does not answer: the first, and the most that they grow to."""
HANDSHAKE = 5.0
"""Seconds that a server has to show that it speaks TLS."""
AGAIN = (408, 412, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed."""
Answer = TypeVar("Answer")


class Turned(Exception):
    """The server answered a request with no.

    Args:
        code: HTTP status.
        why: what it said.
    """

    def __init__(self, code: int, why: str) -> None:
        self.code, self.why = code, why
        super().__init__(f"{code}: {why}")


class Client(FleetHttpClient):
    """One device's connection.

    Args:
        address: host and port of the server.
        key: of the device.
        authority: certificate of the authority that signed the server's; None for a server without TLS.
        give_up: seconds without an answer after which a request fails; None waits for ever.
        tell: told in one line when the server goes away and comes back.

    Raises:
        ModelError: if the authority's certificate cannot be read.
    """

    def __init__(
        self,
        address: str,
        key: ec.EllipticCurvePrivateKey,
        authority: Path | None,
        *,
        give_up: float | None,
        tell: Callable[[str], None],
    ) -> None:
        self.signing, self.address = Signing(key), address
        self._give_up, self._tell, self._plain = give_up, tell, authority is None
        scheme = "http" if authority is None else "https"
        super().__init__(f"{scheme}://{address}", interceptors=[self.signing], verify=False)
        self._client.close()
        verify = False if authority is None else _trusting(authority)
        self._client = httpx.Client(
            verify=verify, timeout=TIMEOUT, limits=httpx.Limits(keepalive_expiry=KEPT), trust_env=False
        )

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def attempt(self, ask: Callable[[], Answer]) -> Answer:
        """Return the answer to a request, however long the server is away.

        Raises:
            Turned: if the server says no.
            HostError: if its certificate is refused, or `give_up` is over.
        """
        wait, since = LEAST, None
        while True:
            try:
                answer = ask()
            except httpx.HTTPStatusError as error:
                if error.response.status_code not in AGAIN:
                    self._back(since)
                    raise Turned(error.response.status_code, _detail(error.response)) from error
                said = f"it answers {error.response.status_code}"
            except httpx.TransportError as error:
                said = self._unless_refused(error)
            except (httpx.InvalidURL, ValueError) as error:  # not even a damaged answer is of that kind
                raise HostError(
                    f"no server of edgetune: {str(error)[:100]}", where=self.address, hint="is the address right?"
                ) from error  # fmt: skip
            else:
                self._back(since)
                return answer
            now = time.monotonic()
            if since is None:
                since = now
                self._tell(f"no answer from {self.address} ({said}); trying again")
            if self._give_up is not None and now - since > self._give_up:
                raise UnreachableError(
                    f"no answer for {self._give_up:g} seconds ({said})", where=self.address,
                    hint="is the server running, and its port open?",
                )  # fmt: skip
            time.sleep(wait)
            wait = min(2 * wait, MOST)

    def _back(self, since: float | None) -> None:
        if since is not None:
            self._tell(f"{self.address} answers again")

    def _unless_refused(self, error: httpx.TransportError) -> str:
        """Return why a connection failed.

        Raises:
            HostError: if it was the server's certificate, which trying again does not change.
        """
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise HostError(
                    f"the server's certificate is refused: {cause.verify_message}", where=self.address,
                    hint="give the ca.pem of its `edgetune certs`; if it has expired, run that again on the server; "
                    "check this device's clock",
                ) from error  # fmt: skip
            cause = cause.__cause__ or cause.__context__
        text = str(error)
        if self._plain and isinstance(error, httpx.RemoteProtocolError) and _speaks_tls(self.address):
            raise HostError(
                "the server speaks TLS", where=self.address, hint="leave out --insecure"
            ) from error
        if "WRONG_VERSION_NUMBER" in text or "record layer" in text:
            raise HostError("the server speaks no TLS", where=self.address, hint="--insecure") from error
        return text or type(error).__name__


def _trusting(authority: Path) -> ssl.SSLContext:
    """Return a context that trusts one authority and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=authority)
    except (OSError, ssl.SSLError) as error:
        raise ModelError(
            "cannot read the authority's certificate", where=authority, hint="--ca CERTS/ca.pem"
        ) from error
    return context


def _speaks_tls(address: str) -> bool:
    """Say whether a server answers a handshake; nothing is sent to it, so that nobody has to be trusted."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), HANDSHAKE) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except OSError:
        return False


def _detail(response: httpx.Response) -> str:
    """Return what a server said in a refusal."""
    try:
        said = json.loads(response.text)
    except (ValueError, RecursionError):
        return response.reason_phrase
    found = said.get("detail") or said.get("message") if isinstance(said, dict) else None
    return shortened(str(found or response.reason_phrase))
