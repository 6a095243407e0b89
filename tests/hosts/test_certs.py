"""The folder of keys: what it holds, who may read it, what a second call leaves alone and what it renews."""

from __future__ import annotations

import os
import ssl
import stat
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from edgetune.core import files
from edgetune.core.errors import ConfigError, MissingExtraError
from edgetune.hosts import certs as module
from edgetune.hosts.certs import make_certs
from edgetune.hosts.keys import check_hosts, registered, server_files

pytest.importorskip("cryptography", reason="the extra flower is not installed")
NOW = datetime.now(timezone.utc)
LATER = NOW + timedelta(days=500)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def loose_mask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def handshake(certs: Path, host: str) -> None:
    """Let a strict client talk to a server with these files, in memory."""
    files = server_files(certs)
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    server_side.load_cert_chain(files.certificate, files.key)
    client_side.load_verify_locations(files.authority)
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(down, up, server_hostname=host)
    server = server_side.wrap_bio(up, down, server_side=True)
    left = [client, server]
    for _ in range(10):
        for one in list(left):
            try:
                one.do_handshake()
                left.remove(one)
            except ssl.SSLWantReadError:
                pass
    assert not left


def test_a_folder_holds_what_server_and_devices_need(tmp_path: Path) -> None:
    made = make_certs(tmp_path / "certs", 2)
    assert set(contents(tmp_path / "certs")) == {
        "ca.pem", "ca.key", "server.pem", "server.key", "status.token",
        "devices/0.pub", "devices/1.pub", "keys/0.key", "keys/1.key",
    }  # fmt: skip
    assert made.authority
    assert made.new == (0, 1)
    assert len(server_files(tmp_path / "certs").token) == 43  # 32 bytes, 6 bits a character


@pytest.mark.usefixtures("loose_mask")
def test_nobody_else_can_ever_read_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    rename = Path.replace

    def watched(self: Path, target: Path) -> Path:
        seen.append((target.name, mode(self)))
        return rename(self, target)

    monkeypatch.setattr(files.Path, "replace", watched)
    out = tmp_path / "certs"
    make_certs(out, 1)
    private = {"ca.key", "server.key", "status.token", "0.key"}
    assert {name: bits for name, bits in seen if name in private} == dict.fromkeys(private, 0o600)
    assert {mode(path) for path in out.rglob("*") if path.name in private} == {0o600}
    assert mode(out / "keys") == 0o700
    assert mode(out / "devices" / "0.pub") == 0o644


def test_devices_trust_the_server_by_every_host_and_no_other(tmp_path: Path) -> None:
    make_certs(tmp_path, 1, ["Fleet.Example.org", "10.1.2.3", "[fd00::1]"])
    for host in ("localhost", "127.0.0.1", "::1", "fleet.example.org", "10.1.2.3", "fd00::1"):
        handshake(tmp_path, host)
        check_hosts(tmp_path / "server.pem", host)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, "other.example.org")
    with pytest.raises(ConfigError, match=r"not for 'other.example.org'.*--host other.example.org"):
        check_hosts(tmp_path / "server.pem", "other.example.org")
    check_hosts(tmp_path / "server.pem", "0.0.0.0")


def test_a_second_call_changes_nothing(tmp_path: Path) -> None:
    make_certs(tmp_path, 2, ["a.example"])
    before = contents(tmp_path)
    made = make_certs(tmp_path, 1, ["a.example"])
    assert contents(tmp_path) == before
    assert (made.authority, made.certificate, made.new) == (False, "", ())
    assert list(made.devices) == [0, 1]


def test_devices_and_hosts_are_added_and_old_ones_kept(tmp_path: Path) -> None:
    make_certs(tmp_path, 1, ["a.example"])
    before = contents(tmp_path)
    made = make_certs(tmp_path, 3, ["b.example"])
    after = contents(tmp_path)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"server.pem", "devices/1.pub", "devices/2.pub", "keys/1.key", "keys/2.key"}
    assert made.new == (1, 2)
    assert {"a.example", "b.example", "localhost"} <= set(made.hosts)
    handshake(tmp_path, "a.example")


def test_an_expired_certificate_is_said_and_renewed_by_the_same_authority(tmp_path: Path) -> None:
    make_certs(tmp_path, 1, days=30)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=r"server.pem: this certificate expired on .*edgetune certs"):
        server_files(tmp_path, now=LATER)
    made = make_certs(tmp_path, 1, days=30, now=LATER)
    assert made.certificate == f"the old one ends on {NOW + timedelta(days=30):%Y-%m-%d}"
    changed = {name for name, data in contents(tmp_path).items() if data != before[name]}
    assert changed == {"server.pem"}
    assert server_files(tmp_path, now=LATER).ends == LATER.replace(microsecond=0) + timedelta(days=30)


def test_a_certificate_is_renewed_a_month_before_its_end_if_the_authority_is_at_hand(tmp_path: Path) -> None:
    make_certs(tmp_path, 1, days=365)
    assert not make_certs(tmp_path, 1, now=NOW + timedelta(days=334)).certificate
    (tmp_path / "ca.key").rename(tmp_path / "elsewhere")
    assert not make_certs(tmp_path, 1, now=NOW + timedelta(days=336)).certificate
    (tmp_path / "elsewhere").rename(tmp_path / "ca.key")
    assert make_certs(tmp_path, 1, now=NOW + timedelta(days=336)).ends > NOW + timedelta(days=700)


def test_an_expired_authority_is_refused(tmp_path: Path) -> None:
    make_certs(tmp_path, 1)
    later = NOW + timedelta(days=4000)
    for call in (lambda: make_certs(tmp_path, 2, now=later), lambda: server_files(tmp_path, now=later)):
        with pytest.raises(ConfigError, match=r"ca.pem: this certificate expired on .*NEW-FOLDER"):
            call()


def test_a_slow_clock_does_not_matter_for_a_day(tmp_path: Path) -> None:
    make_certs(tmp_path, 1)
    server_files(tmp_path, now=NOW - timedelta(hours=23))
    with pytest.raises(ConfigError, match="set the clock"):
        server_files(tmp_path, now=NOW - timedelta(hours=25))


def test_a_command_killed_at_any_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = module._write, [0]

    def killed(path: Path, data: bytes, *, private: bool = False) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        write(path, data, private=private)

    for writes in range(9):
        out = tmp_path / str(writes)
        left[0] = writes
        monkeypatch.setattr(module, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            make_certs(out, 2)
        monkeypatch.undo()
        kept = contents(out)
        make_certs(out, 2)
        handshake(out, "localhost")
        assert list(registered(out)) == [0, 1]
        assert {name: contents(out)[name] for name in kept} == kept


def test_a_key_that_went_to_its_device_is_not_made_again(tmp_path: Path) -> None:
    make_certs(tmp_path, 1)
    known = registered(tmp_path)
    (tmp_path / "keys" / "0.key").unlink()
    assert make_certs(tmp_path, 1).devices == known
    assert not (tmp_path / "keys" / "0.key").exists()


def test_the_authoritys_key_may_lie_elsewhere_until_it_must_sign(tmp_path: Path) -> None:
    make_certs(tmp_path, 1)
    (tmp_path / "ca.key").unlink()
    assert make_certs(tmp_path, 2).new == (1,)
    for damaged in ("server.pem", "server.key"):
        with pytest.raises(ConfigError, match=r"ca.key: the authority's key is not here"):
            make_certs(tmp_path, 2, ["new.example"])
        (tmp_path / damaged).unlink()
    with pytest.raises(ConfigError, match=r"ca.key: the authority's key is not here"):
        make_certs(tmp_path, 2)
    assert not (tmp_path / "server.key").exists()
    assert not (tmp_path / "ca.key").exists()


def test_keys_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    make_certs(one, 1)
    make_certs(other, 1)
    (one / "keys" / "0.key").write_bytes((other / "keys" / "0.key").read_bytes())
    with pytest.raises(ConfigError, match=r"0.key: this key is not that of devices/0.pub"):
        make_certs(one, 1)
    (one / "keys" / "0.key").unlink()
    (one / "ca.key").write_bytes((other / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca.key: this key is not that of ca.pem"):
        make_certs(one, 1, ["new.example"])
    (one / "server.pem").write_bytes((other / "server.pem").read_bytes())
    (one / "server.key").write_bytes((other / "server.key").read_bytes())
    for call in (lambda: make_certs(one, 1), lambda: server_files(one)):
        with pytest.raises(ConfigError, match=r"server.pem: this certificate is not one of the authority"):
            call()


def test_a_key_of_another_certificate_is_refused_and_then_certified(tmp_path: Path) -> None:
    make_certs(tmp_path / "one", 1)
    make_certs(tmp_path / "other", 1)
    key = tmp_path / "one" / "server.key"
    key.write_bytes((tmp_path / "other" / "server.key").read_bytes())
    with pytest.raises(ConfigError, match=r"server.key: this key is not that of server.pem"):
        server_files(tmp_path / "one")
    assert make_certs(tmp_path / "one", 1).certificate == "the key is another"
    handshake(tmp_path / "one", "localhost")


@pytest.mark.parametrize(
    "host",
    ["a b", "", "host:9092", "http://host", "0.0.0.0", "::", "1.2.3", "x" * 64, "é.example", "fe80::1%eth0"],
)
def test_what_is_no_host_is_refused_before_anything_is_made(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match="--host"):
        make_certs(tmp_path / "certs", 1, [host])
    assert not (tmp_path / "certs").exists()


@pytest.mark.parametrize(("devices", "days"), [(0, 1), (10_001, 1), (1, 0), (1, 36_501)])
def test_numbers_out_of_range_are_refused(tmp_path: Path, devices: int, days: int) -> None:
    with pytest.raises(ConfigError, match="not a number from 1 to"):
        make_certs(tmp_path / "certs", devices, days=days)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"edgetune\[flower\]"):
        make_certs(tmp_path / "certs", 1)
