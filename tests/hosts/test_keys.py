"""What a server reads of a folder of keys, and what it says about files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetune.core.errors import ConfigError
from edgetune.hosts.certs import make_certs
from edgetune.hosts.keys import fingerprint, read_key, registered, server_files

pytest.importorskip("cryptography", reason="the extra flower is not installed")
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    make_certs(tmp_path / "certs", 3)
    return tmp_path / "certs"


def pem_of(key: object, password: bytes | None = None, form: str = "PKCS8") -> bytes:
    locked = forms.BestAvailableEncryption(password) if password else forms.NoEncryption()
    return key.private_bytes(forms.Encoding.PEM, getattr(forms.PrivateFormat, form), locked)  # type: ignore[attr-defined]


def test_registered_keys_are_what_flower_makes_of_the_private_ones(certs: Path) -> None:
    asymmetric = pytest.importorskip("flwr.supercore.primitives.asymmetric", reason="flwr is not installed")
    for device, known in registered(certs).items():
        key = read_key(certs / "keys" / f"{device}.key")
        assert known == asymmetric.public_key_to_bytes(key.public_key())
        assert (certs / "keys" / f"{device}.key").read_bytes() == asymmetric.private_key_to_bytes(key)
        assert asymmetric.verify_signature(
            asymmetric.bytes_to_public_key(known), b"said", asymmetric.sign_message(key, b"said")
        )


def test_devices_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    make_certs(tmp_path, 11)
    assert list(registered(tmp_path)) == list(range(11))


def test_white_space_makes_no_other_key(certs: Path) -> None:
    before, path = registered(certs), certs / "devices" / "1.pub"
    path.write_bytes(b"\r\n" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert registered(certs) == before


def test_fingerprints_tell_keys_apart_and_are_those_of_openssl(certs: Path) -> None:
    keys = registered(certs)
    assert len({fingerprint(key) for key in keys.values()}) == 3
    fixed = ec.derive_private_key(12345, ec.SECP384R1()).public_key()
    pem = fixed.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    # openssl pkey -pubin -outform DER | openssl dgst -sha256 -binary | base64
    assert fingerprint(pem) == "SHA256:sTkZ+SWe0te5RgYJ"


def copied(certs: Path) -> None:
    (certs / "devices" / "2.pub").write_bytes((certs / "devices" / "0.pub").read_bytes())


def private(certs: Path) -> None:
    (certs / "devices" / "1.pub").write_bytes((certs / "keys" / "1.key").read_bytes())


def other_curve(certs: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = key.public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo)
    (certs / "devices" / "1.pub").write_bytes(pem)


def emptied(certs: Path) -> None:
    for path in (certs / "devices").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (copied, r"2.pub: devices 0 and 2 have the same key"),
        (private, r"1.pub: this is a private key"),
        (other_curve, r"1.pub: this is another kind of key"),
        (emptied, r"devices: no device has a key here .*--devices N"),
        (
            lambda certs: (certs / "devices" / "1.pub").unlink(),
            r"devices: there is no 1.pub.*--devices 3 makes",
        ),
        (
            lambda certs: (certs / "devices" / "1.pub").write_bytes(b"\xff junk"),
            r"1.pub: this is not a public key",
        ),
        (lambda certs: (certs / "devices" / "1.pub").write_bytes(b"x" * 100_000), r"1.pub: more than"),
        (lambda certs: (certs / "devices" / "notes.txt").touch(), r"notes.txt: a file that is no device's"),
        (lambda certs: (certs / "devices" / "01.pub").touch(), r"01.pub: a file that is no device's"),
        (lambda certs: (certs / "devices" / "3.pub").mkdir(), r"3.pub: the public key is not a regular file"),
    ],
)
def test_a_damaged_folder_is_one_sentence(certs: Path, damage: object, said: str) -> None:
    damage(certs)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=said):
        registered(certs)


def test_hidden_files_are_nobodys(certs: Path) -> None:
    (certs / "devices" / ".DS_Store").touch()
    assert list(registered(certs)) == [0, 1, 2]


KEY = ec.generate_private_key(ec.SECP384R1())
BODY = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (pem_of(KEY, b"secret"), "has a password"),
        (pem_of(KEY, b"secret", "TraditionalOpenSSL"), "has a password"),
        (
            pem_of(ec.generate_private_key(ec.SECP256R1())),
            "on the curve secp256r1, not an elliptic curve key, P-384",
        ),
        (pem_of(rsa.generate_private_key(65537, 2048)), "another kind of key"),
        (pem_of(ed25519.Ed25519PrivateKey.generate()), "another kind of key"),
        (pem_of(KEY, form="OpenSSH"), "not a private key in PEM form"),
        (BODY, "not a private key in PEM form"),
        (b"", "not a private key in PEM form"),
        (b"\0" * 70_000, "more than 65,536 bytes"),
    ],
)
def test_another_private_key_is_one_sentence(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "0.key"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=said) as found:
        read_key(path)
    assert str(path) in str(found.value)


def test_the_public_key_in_place_of_the_private_one_is_said(certs: Path) -> None:
    with pytest.raises(ConfigError, match="this is a public key, not a private one"):
        read_key(certs / "devices" / "0.pub")
    with pytest.raises(ConfigError, match="cannot read the private key: No such file"):
        read_key(certs / "keys" / "9.key")


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key", "status.token"])
@pytest.mark.parametrize("text", [None, b"", b"junk\xff\n"])
def test_server_files_that_are_missing_or_junk_are_named(certs: Path, name: str, text: bytes | None) -> None:
    if text is None:
        (certs / name).unlink()
    else:
        (certs / name).write_bytes(text)
    with pytest.raises(ConfigError, match=name):
        server_files(certs)
