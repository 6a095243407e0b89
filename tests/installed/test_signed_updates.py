from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from desks import Fleet, everything, refused, served

from edgetune.core.errors import ConfigError, DigestError, ModelError
from edgetune.installed.install import change, rollback
from edgetune.installed.making import held, sign_file
from edgetune.installed.manifest import read_manifest
from edgetune.installed.signing import new_key, public_key

pytest.importorskip("cryptography")
Written = Callable[..., Path]


def test_a_device_is_updated_over_loopback_and_rolled_back_to_identical_bytes(
    fleet: Fleet, ledger: Written
) -> None:
    base = everything(fleet.file.parent)
    fleet.offer(ledger())
    with served(fleet.desk) as address:
        done = fleet.take(address)
    moved = fleet.manifest.stat().st_size + (fleet.desk / "fed.ledger").stat().st_size
    assert done.fetched == moved  # type: ignore[attr-defined]
    promised = read_manifest(fleet.manifest.read_bytes(), "here").result
    assert sha256(fleet.file.read_bytes()).hexdigest() == promised.sha256
    assert json.loads(held(fleet.file))["signed"] == json.loads(fleet.manifest.read_text())
    rollback(fleet.file)
    assert everything(fleet.file.parent) == base


def test_a_ledger_that_is_kept_is_not_fetched_again(fleet: Fleet, ledger: Written) -> None:
    shared, more = ledger(), ledger(file="more.ledger", seed=1)
    fleet.offer(shared)
    fleet.take()
    fleet.offer(shared, more)
    shared.unlink()
    fleet.take()
    assert [one["name"] for one in json.loads(held(fleet.file))["ledgers"]] == ["fed.ledger", "more.ledger"]


def test_a_devices_own_ledger_lies_above_the_fleets_and_is_swapped(
    fleet: Fleet, ledger: Written, tmp_path: Path
) -> None:
    shared, ann, bob = ledger(), ledger(file="ann.ledger", seed=1), ledger(file="bob.ledger", seed=2)
    fleet.offer(shared)
    fleet.take(own=[ann])
    anns = fleet.file.read_bytes()
    fleet.take(own=[bob])
    assert fleet.file.read_bytes() != anns
    fleet.take(own=[ann])
    assert fleet.file.read_bytes() == anns
    copy = tmp_path / "copy" / "model.gguf"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "base.gguf").read_bytes())
    change(copy, [shared, ann])
    assert copy.read_bytes() == anns


def test_a_trusted_key_stays_trusted(fleet: Fleet, ledger: Written, tmp_path: Path) -> None:
    fleet.offer(ledger())
    fleet.take()
    fleet.offer(ledger(file="b.ledger", seed=1))
    other = new_key(tmp_path / "other")
    sign_file(fleet.manifest, tmp_path / "other")
    with refused(fleet, DigestError, "not by the trusted"):
        fleet.take(trusted=None, unsigned=True)
    fleet.take(trusted=public_key(other))  # who has the device may name another key


def test_an_unsigned_manifest_needs_to_be_asked_for(fleet: Fleet, ledger: Written) -> None:
    fleet.offer(ledger())
    said = json.loads(fleet.manifest.read_text())
    del said["signature"]
    fleet.manifest.write_text(json.dumps(said))
    with refused(fleet, ConfigError, "no key is trusted"):
        fleet.take(trusted=None)
    with refused(fleet, DigestError, "not signed"):
        fleet.take()
    fleet.take(trusted=None, unsigned=True)


@pytest.mark.parametrize("field", ["serial", "base_digest", "touched", "ledgers", "result", "signature"])
def test_a_tampered_manifest_changes_nothing(fleet: Fleet, ledger: Written, field: str) -> None:
    fleet.offer(ledger())
    said = json.loads(fleet.manifest.read_text())
    tampered = {
        "serial": 9, "base_digest": "0" * 64, "touched": "F16", "ledgers": [], "result": said["base"],
        "signature": said["signature"] | {"value": "00" * 64},
    }  # fmt: skip
    fleet.manifest.write_text(json.dumps(said | {field: tampered[field]}))
    with refused(fleet, DigestError, "the signature does not fit"):
        fleet.take()


@pytest.mark.parametrize("place", [100, -1])
def test_a_tampered_ledger_changes_nothing(fleet: Fleet, ledger: Written, place: int) -> None:
    path = ledger()
    fleet.offer(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with refused(fleet, DigestError, "not the one that the manifest names"):
        fleet.take()


def test_a_stale_update_is_refused_unless_it_is_asked_for(fleet: Fleet, ledger: Written) -> None:
    fleet.offer(ledger())
    first = fleet.manifest.read_bytes()
    fleet.take()
    fleet.offer(ledger(file="b.ledger", seed=1))
    fleet.take()
    fleet.manifest.write_bytes(first)
    with refused(fleet, DigestError, "has the serial number 1, 2 is installed"):
        fleet.take()
    fleet.take(older=True)


def test_two_updates_of_one_number_are_told_apart(fleet: Fleet, ledger: Written) -> None:
    fleet.offer(ledger())
    fleet.take()
    fleet.manifest.unlink()
    fleet.offer(ledger(file="b.ledger", seed=1))
    with refused(fleet, DigestError, "another update of the serial number 1"):
        fleet.take()


def test_an_update_of_another_base_changes_nothing(
    fleet: Fleet, ledger: Written, exported: Callable[[str], Path]
) -> None:
    fleet.offer(ledger())
    fleet.file.write_bytes(exported("F16").read_bytes())
    with refused(fleet, DigestError, "another file than this one"):
        fleet.take()


def test_a_result_that_was_not_promised_changes_nothing(fleet: Fleet, ledger: Written) -> None:
    fleet.offer(ledger())
    said = json.loads(fleet.manifest.read_text())
    fleet.manifest.write_text(json.dumps(said | {"result": said["base"]}))
    sign_file(fleet.manifest, fleet.key)
    with refused(fleet, DigestError, "was promised"):
        fleet.take()


def test_the_same_update_twice_is_one(fleet: Fleet, ledger: Written) -> None:
    fleet.offer(ledger())
    fleet.take()
    before = everything(fleet.file.parent)
    assert not fleet.take().changed  # type: ignore[attr-defined]
    assert everything(fleet.file.parent) == before


@pytest.mark.parametrize("name", ["../x.ledger", "/etc/passwd", "a/b", "", ".hidden", "http://x"])
def test_a_manifest_cannot_name_a_path(fleet: Fleet, ledger: Written, name: str) -> None:
    fleet.offer(ledger())
    said = json.loads(fleet.manifest.read_text())
    said["ledgers"][0]["name"] = name
    with pytest.raises(ModelError, match="'name' is malformed"):
        read_manifest(json.dumps(said).encode(), "here")


@pytest.mark.parametrize("cut", range(0, 900, 37))
def test_a_damaged_manifest_is_refused_as_such(fleet: Fleet, ledger: Written, cut: int) -> None:
    fleet.offer(ledger())
    data = fleet.manifest.read_bytes()
    with pytest.raises(ModelError, match="not a manifest"):
        read_manifest(data[:cut], "here")


def test_the_record_of_an_installed_file_is_no_update(fleet: Fleet, ledger: Written) -> None:
    """As a record on another device it could not be read again: a signed manifest within a signed manifest."""
    fleet.offer(ledger())
    fleet.take()
    record = held(fleet.file)
    rollback(fleet.file)
    fleet.manifest.write_text(record)
    sign_file(fleet.manifest, fleet.key)
    with refused(fleet, ModelError, "the record of an installed file, not an update"):
        fleet.take()


def test_keys_are_never_overwritten_and_private_ones_are_private(tmp_path: Path) -> None:
    public = new_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="never overwritten"):
        new_key(tmp_path / "key")
    with pytest.raises(ConfigError, match="private key"):
        public_key(tmp_path / "key")
    assert len(public_key(public)) == 64
