from __future__ import annotations

import http.server
from collections.abc import Callable
from pathlib import Path

import pytest
from desks import Fleet, refused, served

from edgetune.core.errors import ConfigError, HostError, ModelError, UnreachableError
from edgetune.installed import fetching
from edgetune.installed.fetching import Source

pytest.importorskip("cryptography")
Written = Callable[..., Path]


class Endless(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass

    def log_message(self, *arguments: object) -> None:
        pass


class Elsewhere(Endless):
    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "http://192.0.2.1/update.json")
        self.end_headers()


class Short(Endless):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"{}")


class Silent(Endless):
    def do_GET(self) -> None:
        self.connection.recv(1)


@pytest.mark.parametrize(
    ("handler", "kind", "match"),
    [
        (Endless, ModelError, "more than the"),
        (Elsewhere, HostError, "answers 302"),
        (Short, UnreachableError, "stopped 998 bytes"),
        (Silent, UnreachableError, "timed out"),
    ],
)
def test_a_server_that_does_not_keep_to_it_is_left(
    fleet: Fleet,
    handler: type[http.server.BaseHTTPRequestHandler],
    kind: type[Exception],
    match: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetching, "SECONDS", 0.5)
    with served(fleet.desk, handler) as address, refused(fleet, kind, match):
        fleet.take(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/u.json",
        "ftp://127.0.0.1/u.json",
        "file:///etc/passwd",
        "http://127.0.0.1.example.org/u",
    ],
)
def test_plain_http_is_for_this_machine_alone(address: str) -> None:
    with pytest.raises(ConfigError, match="over https"):
        Source(address)


def test_a_missing_file_is_one_line(fleet: Fleet, ledger: Written) -> None:
    with served(fleet.desk) as address, refused(fleet, HostError, "answers 404"):
        fleet.take(address)
