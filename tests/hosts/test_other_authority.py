"""A server with certificates of an authority that `edgetune certs` did not make."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from edgetune.core.errors import ConfigError
from edgetune.hosts.certs import make_certs
from edgetune.hosts.keys import check_hosts, server_files

pytest.importorskip("cryptography", reason="the extra flower is not installed")
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec, rsa

NOW = datetime.now(timezone.utc)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def certified(
    name: str, issuer: str, key: Any, signer: Any, days: int = 10, host: str = "*.fleet.example"
) -> bytes:
    made = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return made.public_bytes(forms.Encoding.PEM)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder whose server has an RSA key, certified by a root through another authority."""
    make_certs(tmp_path, 1)
    root, between = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    key = rsa.generate_private_key(65537, 2048)
    chain = certified("server", "between", key, between) + certified("between", "root", between, root, days=5)
    (tmp_path / "ca.pem").write_bytes(certified("root", "root", root, root))
    (tmp_path / "server.pem").write_bytes(chain)
    pem = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    (tmp_path / "server.key").write_bytes(pem)
    return tmp_path


def test_a_chain_is_checked_up_to_its_root_and_ends_with_its_first(folder: Path) -> None:
    assert abs(server_files(folder).ends - (NOW + timedelta(days=5))) < timedelta(seconds=1)
    with pytest.raises(ConfigError, match=r"server.pem: this certificate expired"):
        server_files(folder, now=NOW + timedelta(days=6))
    first, _, _ = (folder / "server.pem").read_bytes().partition(b"-----END CERTIFICATE-----\n")
    (folder / "server.pem").write_bytes(first + b"-----END CERTIFICATE-----\n")
    with pytest.raises(ConfigError, match=r"server.pem: this certificate is not one of the authority"):
        server_files(folder)


def test_a_star_stands_for_one_label(folder: Path) -> None:
    check_hosts(folder / "server.pem", "One.fleet.example")
    for host in ("fleet.example", "a.b.fleet.example", "10.0.0.1"):
        with pytest.raises(ConfigError, match="not for"):
            check_hosts(folder / "server.pem", host)


def test_adding_a_device_leaves_all_that_alone(folder: Path) -> None:
    before = [(folder / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key")]
    (folder / "ca.key").unlink()
    assert make_certs(folder, 2).new == (1,)
    assert [(folder / name).read_bytes() for name in ("ca.pem", "server.pem", "server.key")] == before
