"""The HTTP server that other programs reach: it asks for a key and passes on what a chat needs, nothing else."""

from __future__ import annotations

import errno
import hmac
import http.client
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any

from edgetune.core.errors import ConfigError, ModelError
from edgetune.export.llama_cpp import LlamaCpp
from edgetune.export.lora import listed, scales_of, with_scales
from edgetune.export.process import Process

ROUTES = {
    "/health": ("GET",),
    "/v1/models": ("GET",),
    "/v1/completions": ("POST",),
    "/v1/chat/completions": ("POST",),
}
"""What is passed on. llama.cpp's own server also shows prompts of others (/slots) and its settings (/props)."""

ADAPTERS = "/lora-adapters"
"""Served where adapters are loaded, in llama.cpp's form; answered here, see `lora.with_scales`."""

OPEN = "/health"
"""The one route without a key."""

LARGEST_BODY = 16 << 20
"""Bytes of one request; thousands of pages of text."""

IDLE_SECONDS = 60
"""How long a client may take to send its request."""

PIECE = 1 << 16
MOST_DIGITS = 15
MOST_PORTS = 65535


class Front(ThreadingHTTPServer):
    """A listening socket that passes requests on once a loaded file stands behind it.

    A request with an `Origin` comes from a web page and is refused, as is, on a loopback address, one whose `Host`
    is another machine's: no page that a browser shows can talk to the model.

    Args:
        host: name or address of the interface.
        port: 0 for any free one.
        key: what `Authorization: Bearer` must carry; None asks for nothing, on loopback only.

    Raises:
        ConfigError: if the port is out of range or taken, the host is not of this machine, or it is open to the
            network without a key.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, key: str | None) -> None:
        if not 0 <= port <= MOST_PORTS:
            raise ConfigError(f"there is no port {port}", where="--port", hint=f"0 to {MOST_PORTS}")
        if key is not None and not (key and key.isascii() and key.isprintable() and key.strip() == key):
            raise ConfigError("a key is printable ASCII without spaces around it", where="--api-key")
        self.address_family, address = _resolved(host, port)
        self.loopback = ip_address(address).is_loopback
        if key is None and not self.loopback:
            raise ConfigError(
                f"{host} offers the model to the network without a key", hint="leave --no-api-key out"
            )
        self.key = key
        try:
            super().__init__((address, port), _Handler)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            what = f"port {port} of {host} is taken by another program" if taken else ""
            raise ConfigError(
                what or f"cannot listen on {host} port {port}: {error.strerror}",
                where="--port",
                hint="choose another, or 0 for any free one",
            ) from error

    @property
    def url(self) -> str:
        """Where it listens, for example `http://127.0.0.1:8080`."""
        address = str(self.server_address[0])
        return f"http://{f'[{address}]' if ':' in address else address}:{self.server_port}"

    @contextmanager
    def serving(self, llama: LlamaCpp) -> Iterator[None]:
        """Pass requests on to a loaded file inside a `with` block."""
        self.llama = llama
        self.worn: Any = None
        self.routes = ROUTES | ({ADAPTERS: ("GET", "POST")} if llama.adapters else {})
        thread = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.shutdown()
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away; anything else is a bug and is shown."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _resolved(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"no interface {host!r} here", where="--host", hint="try 127.0.0.1") from error
    return socket.AddressFamily(family), str(address[0])


class _Upstream(http.client.HTTPConnection):
    """A connection to llama.cpp over its own socket."""

    def __init__(self, process: Process) -> None:
        super().__init__("localhost")
        self._path = str(process.socket)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    server: Front

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "edgetune", ""
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._handle("GET")

    def do_POST(self) -> None:
        self._handle("POST")

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log: addresses and requests are nobody's business."""

    def _handle(self, method: str) -> None:
        path = self.path.partition("?")[0]
        if "Origin" in self.headers:
            return self._refuse(403, "requests of web pages are refused")
        if not self._is_ours(self.headers.get("Host", "")):
            return self._refuse(403, "this server has another name")
        if path != OPEN and not self._knows_the_key():
            return self._refuse(401, "a key is needed: Authorization: Bearer KEY")
        routes = self.server.routes
        if method not in routes.get(path, ()):
            return self._refuse(405 if path in routes else 404, f"{method} {path} is not served")
        length = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not length.isdecimal():
            return self._refuse(411, "the length of the request is not said")
        if len(length) > MOST_DIGITS or int(length) > LARGEST_BODY:
            return self._refuse(413, f"at most {LARGEST_BODY} bytes")
        body = self.rfile.read(int(length))
        try:
            if path == ADAPTERS:
                return self._adapt(method, body)
            return self._pass_on(method, path, body)
        except ConfigError as error:
            return self._refuse(400, error.what)

    def _adapt(self, method: str, body: bytes) -> None:
        """Say which adapters are loaded, after their scales were changed if that was asked."""
        llama = self.server.llama
        if method == "POST":
            try:
                llama.adapt(scales_of(body, llama.adapters))
            except ModelError:
                return self._refuse(502, "llama.cpp does not answer any more")
        return self._say(200, listed(llama.adapters, llama.scales))

    def _is_ours(self, host: str) -> bool:
        """Say whether the request was meant for this address; names on a network are not known here."""
        if not self.server.loopback:
            return True
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        try:
            return name == "localhost" or ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False

    def _knows_the_key(self) -> bool:
        if self.server.key is None:
            return True
        said = self.headers.get("Authorization", "")
        return hmac.compare_digest(said.encode("latin-1", "replace"), f"Bearer {self.server.key}".encode())

    def _refuse(self, code: int, message: str) -> None:
        """Answer with an error in OpenAI's form; the connection ends, since the request was not read."""
        kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
        error = {"message": message, "type": kinds.get(code, "invalid_request_error"), "code": code}
        self.close_connection = True
        self._say(code, {"error": error})

    def _say(self, code: int, answer: Any) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def _pass_on(self, method: str, path: str, body: bytes) -> None:
        llama, worn = self.server.llama, self.server.worn
        if method == "POST":
            body, worn = with_scales(body, llama.scales, worn)
        upstream = _Upstream(llama.process)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {llama.process.key}"}
        try:
            try:
                upstream.request(method, path, body, headers)
                answer = upstream.getresponse()
                if answer.status == HTTPStatus.OK:
                    self.server.worn = worn
            except (OSError, http.client.HTTPException):
                return self._refuse(502, "llama.cpp does not answer any more")
            self._relay(answer)
        except (OSError, http.client.HTTPException):
            # The client went, or llama.cpp did in the middle of an answer: closing both sides tells the other.
            self.close_connection = True
        finally:
            upstream.close()
        return None

    def _relay(self, answer: http.client.HTTPResponse) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
        if answer.length is not None:
            self.send_header("Content-Length", str(answer.length))
            self.end_headers()
            self.wfile.write(answer.read())
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := answer.read1(PIECE):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")
