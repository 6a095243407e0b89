"""The link itself, both ends in this process: what is sent arrives once, whoever is turned away hears why."""

# ruff: noqa: E402 - without the extra nothing of this can be imported
from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="the extra flower is not installed")

from edgetune.hosts.flower.switches import switch_off

switch_off()

from cryptography.hazmat.primitives.asymmetric import ec

from edgetune.core.errors import ConfigError, HostError, UnreachableError
from edgetune.hosts.certs import make_certs
from edgetune.hosts.flower import superlink
from edgetune.hosts.flower.serving import Serving
from edgetune.hosts.flower.supernode import SuperNode
from edgetune.hosts.keys import read_key, registered

PATIENCE = 20.0


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    make_certs(folder, 2)
    return folder


def key(certs: Path, device: int) -> ec.EllipticCurvePrivateKey:
    return read_key(certs / "keys" / f"{device}.key")


def serving(certs: Path, port: int = 0, *, tls: bool = False, **more: Any) -> Serving:
    files = (certs / "server.pem", certs / "server.key") if tls else None
    said = {"token": "token", "status": dict, **more}
    return Serving(registered(certs), ("127.0.0.1", port), files, **said)


@contextmanager
def node(certs: Path, port: int, device: int = 0, authority: Path | None = None) -> Iterator[SuperNode]:
    one = SuperNode(
        f"127.0.0.1:{port}", key(certs, device), authority, give_up=PATIENCE, tell=lambda line: None
    )
    with one:
        yield one


def until(look: Callable[[], Any]) -> Any:
    """Return what a look finds, once it finds something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


@pytest.mark.parametrize("tls", [False, True])
def test_a_message_arrives_with_its_bytes_and_its_reply_counts_once(certs: Path, tls: bool) -> None:
    body = os.urandom(5000)
    with (
        serving(certs, tls=tls) as link,
        node(certs, link.port, 1, certs / "ca.pem" if tls else None) as device,
    ):
        assert list(link.sessions()) == [1]
        ticket = link.send(1, body)
        named, got = until(device.receive)
        assert (named, got) == (ticket, body)
        assert device.receive() is None
        device.reply(named, body[::-1])
        assert until(lambda: link.replies([ticket])) == {ticket: body[::-1]}
        assert link.replies([ticket]) == {}
        carried = link.carried()[1]
        if sys.platform == "linux":
            assert carried.up > len(body) < carried.down


def test_a_reply_counts_although_its_device_left_at_once(certs: Path) -> None:
    with serving(certs) as link:
        with node(certs, link.port) as device:
            ticket = link.send(0, b"go")
            device.reply(until(device.receive)[0], b"gone")
        assert link.sessions() == {}
        assert link.replies([ticket]) == {ticket: b"gone"}


def test_nothing_is_kept_of_messages_that_were_answered_or_taken_back(certs: Path) -> None:
    with serving(certs) as link, node(certs, link.port) as device:
        for number in range(3):
            ticket = link.send(0, bytes([number]))
            device.reply(until(device.receive)[0], b"yes")
            until(lambda ticket=ticket: link.replies([ticket]))
        link.forget([link.send(0, b"never mind")])
        assert device.receive() is None
        state: Any = link._link._state
        assert not state.message_ins_store
        assert not state.message_res_store
        assert not state.object_store.store


def test_a_device_whose_server_thinks_that_it_is_there_is_let_in_and_known_as_new(certs: Path) -> None:
    with serving(certs) as link, node(certs, link.port):
        first = link.sessions()[0]
        with node(certs, link.port):
            assert link.sessions()[0] != first


def test_a_message_that_nobody_confirmed_is_handed_out_again(
    certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superlink, "UNCONFIRMED", -1.0)
    monkeypatch.setattr(superlink, "BEAT", -1.0)
    with serving(certs) as link, node(certs, link.port) as device:
        ticket = link.send(0, b"go")
        device._client.ConfirmMessageReceived = lambda request: None  # type: ignore[method-assign]
        assert until(device.receive) == (ticket, b"go")
        assert device.receive() is None
        assert link.replies([ticket]) == {}
        assert until(device.receive) == (ticket, b"go")


def test_a_device_outlives_its_server_and_is_there_for_the_next(certs: Path) -> None:
    lines = list[str]()
    with serving(certs) as link:
        port = link.port
        device = SuperNode(f"127.0.0.1:{port}", key(certs, 0), None, give_up=PATIENCE, tell=lines.append)
        device.__enter__()
    came = list[Any]()
    waiting = threading.Thread(target=lambda: came.append(until(device.receive)), daemon=True)
    waiting.start()
    time.sleep(0.3)
    with serving(certs, port) as link:
        until(lambda: 0 in link.sessions())
        ticket = link.send(0, b"again")
        waiting.join(PATIENCE)
        assert came == [(ticket, b"again")]
        device.__exit__(None, None, None)
    assert "no answer" in lines[0]
    assert "answers again" in lines[1]


def test_an_answer_to_a_server_that_was_started_anew_is_dropped_and_the_device_stays(certs: Path) -> None:
    with serving(certs) as link:
        port = link.port
        device = SuperNode(f"127.0.0.1:{port}", key(certs, 0), None, give_up=PATIENCE, tell=lambda line: None)
        device.__enter__()
        link.send(0, b"go")
        ticket = until(device.receive)[0]
    with serving(certs, port) as link:
        device.reply(ticket, b"for the other one")
        assert 0 in link.sessions()
        device.__exit__(None, None, None)


def test_a_wrong_clock_is_set_right_by_the_server(certs: Path) -> None:
    with serving(certs) as link:
        device = SuperNode(
            f"127.0.0.1:{link.port}", key(certs, 0), None, give_up=PATIENCE, tell=lambda line: None
        )
        device._client.signing._ahead = timedelta(days=-3)
        with device:
            assert 0 in link.sessions()


def test_a_stranger_is_turned_away_and_told_why_and_the_server_hears_of_it_once(certs: Path) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    with serving(certs) as link:
        for _ in range(2):
            device = SuperNode(f"127.0.0.1:{link.port}", stranger, None, give_up=1.0, tell=lambda line: None)
            with pytest.raises(HostError, match="not registered"):
                device.__enter__()
        ((who, why),) = link.turned_away()
        assert who is None
        assert "not registered with the server: SHA256:" in why
        assert link.turned_away() == []


def test_a_key_without_its_signature_gets_nothing(certs: Path) -> None:
    with serving(certs) as link:
        device = SuperNode(f"127.0.0.1:{link.port}", key(certs, 0), None, give_up=1.0, tell=lambda line: None)
        device._client.signing._key = key(certs, 1)
        with pytest.raises(HostError, match="signature is not of this key"):
            device.__enter__()
        assert link.sessions() == {}
        assert [who for who, _ in link.turned_away()] == [0]


def test_another_authority_is_refused_in_one_sentence(certs: Path, tmp_path: Path) -> None:
    make_certs(tmp_path, 1)
    with serving(certs, tls=True) as link:
        device = SuperNode(
            f"127.0.0.1:{link.port}", key(certs, 0), tmp_path / "ca.pem", give_up=1.0, tell=lambda line: None
        )
        with pytest.raises(HostError, match="certificate is refused"):
            device.__enter__()


def test_a_device_gives_up_on_a_server_that_is_not_there(certs: Path) -> None:
    with serving(certs) as link:
        port = link.port
    device = SuperNode(f"127.0.0.1:{port}", key(certs, 0), None, give_up=0.2, tell=lambda line: None)
    with pytest.raises(UnreachableError, match="no answer"):
        device.__enter__()


def test_an_address_in_use_is_refused_before_anything_starts(certs: Path) -> None:
    with serving(certs) as link, pytest.raises(ConfigError, match="cannot listen"):
        serving(certs, link.port)


def test_a_server_says_once_that_its_certificate_has_expired(certs: Path) -> None:
    ends = datetime.now(timezone.utc) - timedelta(minutes=1)
    with serving(certs, tls=True, ends=ends) as link:
        ((who, why),) = link.turned_away()
        assert who is None
        assert "certificate expired" in why
        assert link.turned_away() == []
    with serving(certs, tls=True, ends=ends + timedelta(days=1)) as link:
        assert link.turned_away() == []
