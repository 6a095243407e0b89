"""Asking a server how its run stands: what it says, and one line for everything that can be wrong."""

from __future__ import annotations

import datetime
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ConfigError, EdgetuneError, HostError, UnreachableError
from edgetune.core.event_log import EventLog
from edgetune.core.events import RunStarted
from edgetune.hosts import status_client
from edgetune.hosts.status import status_of
from edgetune.hosts.status_client import Address, StatusClient

pytest.importorskip("cryptography", reason="needs the extra flower")

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

TOKEN = "a-token-that-nobody-may-see"
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """A test authority; its folder holds what a client needs."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def built(name: str, issuer: str, key: Any, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer)).public_key(key)
    return (
        made.serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + days * DAY)
    )


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def authority(folder: Path) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    builder = built("authority", "authority", public, 10)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    folder.mkdir()
    (folder / "ca.pem").write_bytes(pem(certificate))
    (folder / "status.token").write_text(TOKEN + "\n")
    return Authority(folder, key, certificate)


def server_context(by: Authority, *, days: int = 10, host: str = "127.0.0.1") -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = built("server", "authority", key.public_key(), days)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    builder = builder.add_extension(names, critical=False)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.key.public_key())
    certificate = builder.add_extension(signer, critical=False).sign(by.key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (by.folder / "server.both").write_bytes(pem(certificate) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(by.folder / "server.both")
    return context


Answer = Callable[[str, str | None], tuple[int, bytes, dict[str, str]]]


@contextmanager
def serving(answer: Answer, context: ssl.SSLContext | None) -> Iterator[Address]:
    """Serve on a loopback port; `answer` gets the path and the token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body, headers = answer(self.path, self.headers.get("Authorization"))
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Address("127.0.0.1", server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def certs(tmp_path: Path) -> Authority:
    return authority(tmp_path / "certs")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that has begun."""
    folder = tmp_path / "run"
    folder.mkdir()
    EventLog(folder / "events.jsonl")(RunStarted("edgetune server", {}, "fedkseed", "b", 0, {}, 1))
    return folder


def answering(run: Path) -> Answer:
    def answer(path: str, token: str | None) -> tuple[int, bytes, dict[str, str]]:
        if path != "/v1/edgetune/status":
            return 404, b"", {}
        if token != f"Bearer {TOKEN}":
            return 401, b"no", {}
        return 200, json.dumps(status_of(run)).encode(), {}

    return answer


def refusal(client: Callable[[], StatusClient]) -> EdgetuneError:
    with pytest.raises(EdgetuneError) as caught:
        client().now()
    assert TOKEN not in repr(caught.value) + str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def test_both_forms_show_the_same(certs: Authority, run: Path) -> None:
    with serving(answering(run), server_context(certs)) as address:
        client = StatusClient(address, certs.folder)
        assert client.now() == client.now() == status_of(run)
        assert TOKEN not in repr(client)


def test_without_tls_only_who_types_it_is_asked(certs: Authority, run: Path) -> None:
    with serving(answering(run), None) as address:
        assert StatusClient(address, certs.folder, insecure=True).now() == status_of(run)
        assert "does not know this token" in str(refusal(lambda: StatusClient(address, insecure=True)))
        error = refusal(lambda: StatusClient(address, certs.folder))
        assert (type(error), "no TLS there" in str(error), error.exit_code) == (HostError, True, 11)
    with pytest.raises(ConfigError, match="--certs"):
        StatusClient(address)


def test_a_server_with_tls_hangs_up_on_plain_questions(certs: Authority, run: Path) -> None:
    with serving(answering(run), server_context(certs)) as address:
        error = refusal(lambda: StatusClient(address, certs.folder, insecure=True))
        assert "without --insecure" in str(error)


def test_nobody_there(certs: Authority) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", free.getsockname()[1])
        error = refusal(lambda: StatusClient(address, certs.folder))
    assert str(error).startswith(
        f"{address}: no server there: connection refused (is edgetune server running"
    )
    assert (type(error), error.exit_code) == (UnreachableError, 11)
    nowhere = Address("nowhere.invalid", 1)
    assert "no such host" in str(refusal(lambda: StatusClient(nowhere, certs.folder)))
    long = Address("a" * 200, 1)
    assert "no such host" in str(refusal(lambda: StatusClient(long, certs.folder)))


def test_a_server_that_does_not_answer_is_not_waited_for_without_end(
    certs: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_client, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address("127.0.0.1", silent.getsockname()[1])
        error = refusal(lambda: StatusClient(address, certs.folder))
    assert (type(error), "no answer in" in str(error)) == (UnreachableError, True)


def test_a_wrong_token_is_said_and_never_shown(certs: Authority, run: Path) -> None:
    with serving(answering(run), server_context(certs)) as address:
        (certs.folder / "status.token").write_text("another")
        error = refusal(lambda: StatusClient(address, certs.folder))
    assert ("does not know this token" in str(error), error.exit_code) == (True, 11)
    assert "another" not in str(error)


def test_what_is_wrong_with_a_certificate_is_said(certs: Authority, run: Path, tmp_path: Path) -> None:
    stranger = authority(tmp_path / "stranger")
    cases = {
        "another authority signed": server_context(stranger),
        "has expired": server_context(certs, days=-1),
        "is not for 127.0.0.1": server_context(certs, host="127.0.0.2"),
    }
    for said, context in cases.items():
        with serving(answering(run), context) as address:
            error = refusal(lambda at=address: StatusClient(at, certs.folder))  # type: ignore[misc]
        assert (type(error), said in str(error)) == (HostError, True), str(error)


def test_the_token_goes_to_no_other_address(
    certs: Authority, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str | None]()

    def elsewhere(path: str, token: str | None) -> tuple[int, bytes, dict[str, str]]:
        asked.append(token)
        return 200, b"{}", {}

    with ExitStack() as both:
        other = both.enter_context(serving(elsewhere, None))
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{other}")
        moved: Answer = lambda path, token: (302, b"", {"Location": f"http://{other}{path}"})  # noqa: E731
        address = both.enter_context(serving(moved, server_context(certs)))
        error = refusal(lambda: StatusClient(address, certs.folder))
    assert ("HTTP status 302" in str(error), asked) == (True, [])


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b"hello", b"\xff", b"[" * 100_000, b'{"state": "running"}', b"1" * 5000],
    ids=len,
)
def test_an_answer_of_something_else_is_one_line(certs: Authority, run: Path, body: bytes) -> None:
    with serving(lambda path, token: (200, body, {}), server_context(certs)) as address:
        assert "is no status" in str(refusal(lambda: StatusClient(address, certs.folder)))


@pytest.mark.parametrize(
    ("name", "value"), [("losses", [[1, float("nan")]]), ("online", ["0"]), ("refused", {"x": -1})]
)
def test_a_damaged_field_is_no_status(certs: Authority, run: Path, name: str, value: Any) -> None:
    body = json.dumps({**status_of(run), name: value}).encode()
    with serving(lambda path, token: (200, body, {}), server_context(certs)) as address:
        assert "is no status" in str(refusal(lambda: StatusClient(address, certs.folder)))


@pytest.mark.parametrize(
    ("code", "said"), [(404, "HTTP status 404"), (500, "HTTP status 500"), (503, "not ready")]
)
def test_another_status_of_http_is_said(certs: Authority, code: int, said: str) -> None:
    with serving(lambda path, token: (code, b"", {}), server_context(certs)) as address:
        assert said in str(refusal(lambda: StatusClient(address, certs.folder)))


@pytest.mark.parametrize("damage", ["ca.pem", "status.token"])
def test_files_that_are_missing_or_damaged_are_named(certs: Authority, damage: str) -> None:
    at = Address("127.0.0.1", 1)
    for text in (b"\xff", b"", None):
        if text is None:
            (certs.folder / damage).unlink()
        else:
            (certs.folder / damage).write_bytes(text)
        error = refusal(lambda: StatusClient(at, certs.folder))
        assert (type(error), damage in str(error)) == (ConfigError, True)
