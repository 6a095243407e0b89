"""What a server answers to those who are not its devices, or pretend to be: nothing, at little cost."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="the extra flower is not installed")
from cryptography.hazmat.primitives.asymmetric import ec
from engines import certified, node, refusal, serving, signed, web
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest

from edgetune.hosts.flower import meter
from edgetune.hosts.flower import serving as module
from edgetune.hosts.flower.gate import ANOTHER, ELSEWHERE, STRANGER, UNSIGNED, USED
from edgetune.hosts.flower.serving import Serving
from edgetune.hosts.keys import read_key
from edgetune.measure.machine import resident_bytes

FILES = Path("/proc/self/fd")
PULL = "/v1/fleet/pull-messages"


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certified(tmp_path_factory.mktemp("keys") / "certs", 2)


@pytest.fixture
def link(certs: Path) -> Iterator[Serving]:
    with serving(certs) as made:
        yield made


def still_serves(link: Serving, certs: Path) -> None:
    """Let a device come, get a message and answer it."""
    with node(link, certs / "keys/0.key", certs / "ca.pem") as post:
        ticket = link.send(0, b"question")
        assert post.receive() == (ticket, b"question")
        post.reply(ticket, b"answer")
        assert link.replies([ticket]) == {ticket: b"answer"}


@pytest.mark.parametrize("path", [
    "/v1/control/start-run", "/v1/control/list-runs", "/v1/runtime/acquire-task", "/v1/runtime/push-messages",
    "/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet/get-fab", "/v1/fleet/get-run",
    "/", "/docs", "/openapi.json", "/v1/fleet/pull-messages/", "/v1/fleet/../control/list-runs", "//v1/fleet/get-run",
])  # fmt: skip
def test_a_device_too_finds_nothing_beside_what_devices_need(link: Serving, certs: Path, path: str) -> None:
    key = read_key(certs / "keys/0.key")
    with web(link, certs) as client:
        for method in ("GET", "POST"):
            answer = client.request(method, path, headers=signed(key))
            assert (answer.status_code, answer.json()) == (404, {"detail": ELSEWHERE})
    assert link.turned_away() == [(None, ELSEWHERE)]


def test_strangers_get_nothing_and_are_told_of_by_their_key(link: Serving, certs: Path) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    with web(link, certs) as client:
        for path in sorted(USED):
            for headers in ({}, signed(stranger), {**signed(stranger), "flwr-public-key": "!"}):
                answer = client.post(path, headers=headers)
                assert (answer.status_code, answer.json()) == (403, {"detail": STRANGER})
    why = [why for device, why in link.turned_away() if device is None]
    assert [
        one.startswith(said)
        for one, said in zip(sorted(why), ("a request without a key", STRANGER), strict=True)
    ]
    assert "SHA256:" in max(why)


@pytest.mark.parametrize(
    "odd", [b"", b"\0" * 50, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", b"\xff\xfe"]
)
def test_what_is_no_key_at_all_is_turned_away_too(link: Serving, certs: Path, odd: bytes) -> None:
    from base64 import b64encode

    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER

    with web(link, certs) as client:
        answer = client.post(PULL, headers={FLEET_HTTP_PUBLIC_KEY_HEADER: b64encode(odd).decode()})
    assert answer.status_code == 403
    assert link.turned_away() in (
        [(None, f"{STRANGER}: no key of a device")],
        [(None, "a request without a key")],
    )


def test_a_public_key_without_its_private_one_and_an_old_signature_get_nothing(
    link: Serving, certs: Path
) -> None:
    key, other = (read_key(certs / f"keys/{id}.key") for id in range(2))
    activate = ActivateNodeRequest(public_key=b"", heartbeat_interval=20).SerializeToString()
    forged = {**signed(key, by=other)}
    unsigned = {name: value for name, value in signed(key).items() if "sign" not in name.lower()}
    strange = [{**signed(key), name: value} for name, value in (
        ("flwr-timestamp", "yesterday"), ("flwr-timestamp", "2026-01-01T00:00:00"), ("flwr-signature", "!"),
    )]  # fmt: skip
    with web(link, certs) as client:
        for headers in (forged, unsigned, signed(key, ago=306), signed(key, ago=-10), *strange):
            answer = client.post(PULL, headers=headers, content=activate)
            assert (answer.status_code, answer.json()) == (401, {"detail": UNSIGNED})
        asked = ActivateNodeRequest(public_key=b"another", heartbeat_interval=20).SerializeToString()
        assert client.post("/v1/fleet/activate-node", headers=signed(key), content=asked).status_code == 401
    assert link.turned_away() == [(0, UNSIGNED), (0, ANOTHER)], "the same is told once a minute"
    assert link.sessions() == {}


def test_a_device_cannot_ask_in_anothers_name(link: Serving, certs: Path) -> None:
    with node(link, certs / "keys/0.key", certs / "ca.pem") as victim:
        link.send(0, b"for device 0")
        asked = PullMessagesRequest(node=victim._node).SerializeToString()
        with web(link, certs) as client:
            answer = client.post(PULL, headers=signed(read_key(certs / "keys/1.key")), content=asked)
        assert answer.status_code == 401
        found = victim.receive()
        assert found is not None
        assert found[1] == b"for device 0"
    assert (1, ANOTHER) in link.turned_away()


def test_keys_made_by_the_thousand_do_not_fill_the_log(link: Serving, certs: Path) -> None:
    for number in range(3 * module.STRANGERS):
        link._refuse(None, f"{STRANGER}: {number}")
    link._refuse(1, UNSIGNED)
    told = link.turned_away()
    assert (len(told), told[-1]) == (module.STRANGERS + 1, (1, UNSIGNED))
    link._since -= module.SELDOM
    link._refuse(None, "another minute")
    assert link.turned_away() == [(None, "another minute")]


def secured(link: Serving) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", link.port), 10))


@pytest.mark.parametrize("whose", ["nobody's", "a stranger's", "a registered key without its signature"])
def test_a_long_body_is_not_read_before_its_sender_is_known(link: Serving, certs: Path, whose: str) -> None:
    key = read_key(certs / "keys/0.key")
    stranger = ec.generate_private_key(ec.SECP384R1())
    headers = {
        "nobody's": {}, "a stranger's": signed(stranger),
        "a registered key without its signature": signed(key, by=stranger),
    }[whose]  # fmt: skip
    lines = [
        f"POST {PULL} HTTP/1.1",
        "host: x",
        f"content-length: {100 << 20}",
        *(f"{a}: {b}" for a, b in headers.items()),
    ]
    before, sent = resident_bytes(), 0
    with secured(link) as line, contextlib.suppress(OSError):
        line.sendall("\r\n".join([*lines, "", ""]).encode())
        line.settimeout(1)
        for _ in range(100):
            line.sendall(b"\0" * (1 << 20))
            sent += 1
    assert resident_bytes() - before < 20 << 20
    still_serves(link, certs)


def test_garbage_and_plain_http_leave_a_server_as_it_was(link: Serving, certs: Path) -> None:
    for junk in (
        os.urandom(4096),
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"\0" * 999,
        b"",
    ):
        with socket.create_connection(("127.0.0.1", link.port), 5) as line:
            line.sendall(junk)
            line.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while line.recv(4096):
                    pass
    for junk in (
        os.urandom(4096),
        b"\0" * 99,
        b"POST / HTTP/9.9\r\n\r\n",
        b"A" * 300_000,
        b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    ):
        with secured(link) as line, contextlib.suppress(OSError):
            line.settimeout(2)
            line.sendall(junk)
            line.recv(4096)
    still_serves(link, certs)


def test_fifty_connections_that_say_nothing_are_closed_and_hold_up_nobody(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "STRANGE", 1.0)
    with serving(certs) as link, contextlib.ExitStack() as stack:
        before = len(list(FILES.iterdir()))
        slow = [stack.enter_context(secured(link)) for _ in range(50)]
        for line in slow:
            line.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nx: ")
        begin = time.monotonic()
        still_serves(link, certs)
        assert time.monotonic() - begin < 2
        for line in slow:
            line.settimeout(5)
            with contextlib.suppress(ConnectionError):
                assert line.recv(1) == b""
        for line in slow:
            line.close()
        until = time.monotonic() + 5
        while len(list(FILES.iterdir())) > before + 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(list(FILES.iterdir())) <= before + 2
        with node(link, certs / "keys/1.key", certs / "ca.pem") as post:
            time.sleep(1.5)
            assert post.receive() is None, "a device's connection stays"
            assert len(link._meter._open) == 1


def test_an_unregistered_device_ends_with_a_line_that_says_why(
    link: Serving, certs: Path, tmp_path: Path
) -> None:
    other = certified(tmp_path / "other", 1)
    error = refusal(link, other / "keys/0.key", certs / "ca.pem")
    assert error.exit_code == 11
    assert str(error).startswith(
        f"127.0.0.1:{link.port}: the server turns this device away: {STRANGER} (register"
    )
    (told,) = link.turned_away()
    assert (told[0], told[1].startswith(f"{STRANGER}: SHA256:")) == (None, True)


def test_the_status_is_for_whoever_has_the_token(link: Serving, certs: Path) -> None:
    token = (certs / "status.token").read_text().strip()
    with web(link, certs) as client:
        for said in (None, "Bearer", f"Bearer {token}x", f"bearer {token}", "Bearer \xff".encode("latin-1")):
            answer = client.get(
                "/v1/edgetune/status", headers={} if said is None else {"authorization": said}
            )
            assert answer.status_code == 401
            assert token not in answer.text
        answer = client.get("/v1/edgetune/status", headers={"authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()) == (200, {"fine": True})
