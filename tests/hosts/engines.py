"""Both ends of the engine in this process, over loopback, without a model."""

from __future__ import annotations

import base64
import contextlib
import ssl
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from edgetune.core.errors import EdgetuneError
from edgetune.hosts.certs import make_certs
from edgetune.hosts.flower.switches import switch_off

switch_off()
from flwr.common.constant import TIMESTAMP_HEADER  # noqa: E402
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER  # noqa: E402
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message  # noqa: E402
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE  # noqa: E402

from edgetune.hosts.flower.serving import Serving  # noqa: E402
from edgetune.hosts.flower.supernode import SuperNode  # noqa: E402
from edgetune.hosts.keys import read_key, registered, server_files  # noqa: E402


def certified(folder: Path, devices: int, *, now: datetime | None = None, days: int = 365) -> Path:
    """Make a folder of keys, at another time if one is said."""
    make_certs(folder, devices, days=days, now=now)
    return folder


@contextlib.contextmanager
def serving(certs: Path, *, tls: bool = True, listen: str = "127.0.0.1") -> Iterator[Serving]:
    """Serve on a free port; an expired certificate is served with, as by a server that runs for long."""
    files = server_files(certs, now=_valid(certs)) if tls else None
    certificate = None if files is None else (files.certificate, files.key)
    token = (certs / "status.token").read_text().strip()
    with Serving(
        registered(certs), (listen, 0), certificate, token=token, status=lambda: {"fine": True}
    ) as link:
        yield link


def _valid(certs: Path) -> datetime:
    from edgetune.hosts.pem import read_certificates

    return read_certificates(certs / "server.pem")[0].not_valid_before_utc + timedelta(minutes=1)


def node(
    link: Serving | int,
    key: Path,
    ca: Path | None,
    tell: Callable[[str], None] = lambda line: None,
    *,
    host: str = "127.0.0.1",
    give_up: float | None = 2.0,
) -> SuperNode:
    """Return a device's end."""
    port = link if isinstance(link, int) else link.port
    return SuperNode(f"{host}:{port}", read_key(key), ca, give_up=give_up, tell=tell)


def refusal(link: Serving | int, key: Path, ca: Path | None, **more: Any) -> EdgetuneError:
    """Return the error that a device ends with when it connects.

    Raises:
        AssertionError: if it connects.
    """
    try:
        with node(link, key, ca, **more):
            raise AssertionError("it is connected")
    except EdgetuneError as error:
        return error


def signed(key: ec.EllipticCurvePrivateKey, *, ago: float = 0.0, by: Any = None) -> dict[str, str]:
    """Return the headers of a device's request: signed some seconds ago, by another key if one is given."""
    time = (datetime.now(timezone.utc) - timedelta(seconds=ago)).isoformat()
    signature = sign_message(by or key, time.encode("ascii"))
    return {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public_key_to_bytes(key.public_key())).decode(),
        TIMESTAMP_HEADER: time,
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
        "content-type": PROTOBUF_MEDIA_TYPE, "accept": PROTOBUF_MEDIA_TYPE,
    }  # fmt: skip


def web(link: Serving, certs: Path) -> httpx.Client:
    """Return a client that trusts the server's authority and signs nothing."""
    context = ssl.create_default_context(cafile=certs / "ca.pem")
    return httpx.Client(base_url=f"https://127.0.0.1:{link.port}", verify=context, trust_env=False)


class Background(threading.Thread):
    """Does something beside the test; what it raises is kept."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work, self.error = work, None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.error: BaseException | None = error
