"""Whom a device believes, and what it says to whom it does not; clocks that are wrong; a server that is not there."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra flower is not installed")
from engines import certified, node, refusal, serving

from edgetune.core.errors import ConfigError, HostError, UnreachableError
from edgetune.hosts.flower import client, gate, signing
from edgetune.hosts.flower.gate import UNSIGNED
from edgetune.hosts.flower.serving import Serving
from edgetune.hosts.keys import server_files

NOW = datetime.now(timezone.utc)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certified(tmp_path_factory.mktemp("keys") / "certs", 2)


@pytest.fixture
def link(certs: Path) -> Iterator[Serving]:
    with serving(certs) as made:
        yield made


def exchanged(link: Serving, certs: Path, *, tls: bool = True) -> list[str]:
    """Let a device answer a message; returns what it said meanwhile."""
    told = list[str]()
    with node(link, certs / "keys/0.key", certs / "ca.pem" if tls else None, told.append) as post:
        ticket = link.send(0, b"question")
        assert post.receive() == (ticket, b"question")
        post.reply(ticket, b"answer")
        assert link.replies([ticket]) == {ticket: b"answer"}
    return told


def one_line(error: HostError, *said: str) -> None:
    text = str(error)
    assert (type(error), error.exit_code, "\n" in text) == (HostError, 11, False)
    for one in said:
        assert one in text


def test_a_certificate_that_has_expired_is_refused_by_both_sides(tmp_path: Path) -> None:
    certs = certified(tmp_path / "certs", 1, now=NOW - timedelta(days=40), days=30)
    with pytest.raises(ConfigError, match=r"server\.pem: this certificate expired on .* \(edgetune certs"):
        server_files(certs)
    with serving(certs) as link:
        error = refusal(link, certs / "keys/0.key", certs / "ca.pem")
        one_line(
            error, "the server's certificate is refused: certificate has expired", "check this device's clock"
        )
        assert link.sessions() == {}


def test_a_certificate_that_is_not_valid_yet_is_refused(tmp_path: Path) -> None:
    certs = certified(tmp_path / "certs", 1, now=NOW + timedelta(days=3))
    with serving(certs) as link:
        one_line(
            refusal(link, certs / "keys/0.key", certs / "ca.pem"), "certificate is not yet valid", "clock"
        )


def test_a_certificate_for_another_host_is_refused(certs: Path) -> None:
    with serving(certs, listen="0.0.0.0") as link:
        error = refusal(link, certs / "keys/0.key", certs / "ca.pem", host="127.0.0.2")
    one_line(error, "the server's certificate is refused: IP address mismatch", "127.0.0.2")


def test_another_authority_is_refused(certs: Path, tmp_path: Path, link: Serving) -> None:
    other = certified(tmp_path / "other", 1)
    error = refusal(link, certs / "keys/0.key", other / "ca.pem")
    one_line(error, "the server's certificate is refused", "give the ca.pem of its `edgetune certs`")
    exchanged(link, certs)


def test_a_device_with_tls_refuses_a_server_without(certs: Path) -> None:
    with serving(certs, tls=False) as link:
        one_line(
            refusal(link, certs / "keys/0.key", certs / "ca.pem"), "the server speaks no TLS (--insecure)"
        )
        assert exchanged(link, certs, tls=False) == []


def test_a_device_without_tls_is_told_that_its_server_speaks_it(certs: Path, link: Serving) -> None:
    told = list[str]()
    error = refusal(link, certs / "keys/0.key", None, tell=told.append, give_up=None)
    one_line(error, "the server speaks TLS (leave out --insecure)")
    assert told == []


def test_a_server_that_is_not_there_is_given_up_after_the_time_that_was_said(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "LEAST", 0.05)
    told = list[str]()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        error = refusal(
            free.getsockname()[1], certs / "keys/0.key", certs / "ca.pem", tell=told.append, give_up=0.3
        )
    assert (type(error), error.exit_code) == (UnreachableError, 11)
    assert "no answer for 0.3 seconds" in str(error)
    assert len(told) == 1, "once, however often it tries"


@pytest.mark.parametrize("host", ["no such.name", "a..b", "x" * 300, "\u2603", "[::1", "127.0.0.1@elsewhere"])
def test_a_host_that_is_none_is_one_line(certs: Path, host: str) -> None:
    error = refusal(1, certs / "keys/0.key", certs / "ca.pem", host=host, give_up=0.0)
    assert isinstance(error, HostError)
    assert "\n" not in str(error)


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """Answers everything, as the page of a hotel's network does."""

    code, body = 200, b"<html>Please log in</html>"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.code)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "body", "said"),
    [(200, b"<html>Please log in</html>", "no server of edgetune"), (302, b"", "turns this device away"),
     (404, b"<html>", "turns this device away: Not Found"), (403, b'{"detail": ["a", 1]}', "turns this device away"),
     (403, b"[" * 99_999, "turns this device away")],
)  # fmt: skip
def test_something_else_that_answers_is_no_server(certs: Path, code: int, body: bytes, said: str) -> None:
    handler = type("Handler", (Elsewhere,), {"code": code, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            error = refusal(server.server_address[1], certs / "keys/0.key", None)
        finally:
            server.shutdown()
            thread.join()
    assert isinstance(error, HostError)
    assert said in str(error)


def shifted(by: timedelta) -> Any:
    """Return a class of times whose clock is wrong."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + by

    return Shifted


@pytest.mark.parametrize("hours", [-24, 24, 24 * 365])
def test_a_device_whose_clock_is_wrong_takes_part(
    certs: Path, link: Serving, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    monkeypatch.setattr(signing, "datetime", shifted(timedelta(hours=hours)))
    assert exchanged(link, certs) == []
    assert link.turned_away() == [(0, UNSIGNED)], "by its first request the server tells it the time"


@pytest.mark.parametrize("hours", [-24, 24])
def test_a_server_whose_clock_is_wrong_is_served(
    certs: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    from flwr.superlink.routers.fleet import node_auth
    from uvicorn import server

    by, formatted = timedelta(hours=hours), server.formatdate
    monkeypatch.setattr(gate, "datetime", shifted(by))
    monkeypatch.setattr(node_auth, "now", lambda: datetime.now(timezone.utc) + by)
    monkeypatch.setattr(
        server, "formatdate", lambda at, usegmt: formatted(at + by.total_seconds(), usegmt=usegmt)
    )
    with serving(certs) as link:
        exchanged(link, certs)
        assert link.turned_away() == [(0, UNSIGNED)]


def test_a_server_whose_clock_is_set_while_devices_are_there_keeps_them(
    certs: Path, link: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    with node(link, certs / "keys/0.key", certs / "ca.pem") as post:
        before = link.sessions()
        post._client.signing._ahead = timedelta(
            days=1
        )  # what a jump of the server's clock leaves a device with
        ticket = link.send(0, b"question")
        assert post.receive() == (ticket, b"question")
        assert link.sessions() == before
