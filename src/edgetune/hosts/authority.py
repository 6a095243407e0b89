"""An authority of one's own, for testing and for a small fleet: what it signs with, and certificates of servers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.x509 import Certificate, CertificateBuilder, GeneralName, KeyUsage, Name

NAME = "edgetune test authority"
SKEW = timedelta(days=1)
"""How long before its making a certificate is valid: clocks of devices may be slow."""
AUTHORITY_DAYS = 3650
"""How long an authority lasts at least: a new one has to reach every device, a server's certificate none."""


def new_key() -> EllipticCurvePrivateKey:
    """Make a key of an authority or of a server, P-256: what every TLS library verifies fastest."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    return generate_private_key(SECP256R1())


def new_authority(key: EllipticCurvePrivateKey, now: datetime, days: int) -> Certificate:
    """Make the certificate of an authority that signs servers' certificates and nothing else.

    Args:
        key: its own.
        now: with its time zone.
        days: how long a certificate of it lasts; the authority lasts `AUTHORITY_DAYS` at least.
    """
    from cryptography.x509 import BasicConstraints

    name, own = _name(NAME), key.public_key()
    ends = now + timedelta(days=max(days, AUTHORITY_DAYS))
    begun = _begun(name, name, own, own, now, ends)
    built = begun.add_extension(BasicConstraints(ca=True, path_length=0), critical=True)
    return _signed(built.add_extension(_usage(signs=True), critical=True), key)


def new_certificate(
    authority: Certificate,
    signer: EllipticCurvePrivateKey,
    key: EllipticCurvePublicKey,
    hosts: Sequence[str],
    now: datetime,
    days: int,
) -> Certificate:
    """Make a server's certificate.

    Args:
        authority: who signs it.
        signer: the authority's key.
        key: the server's.
        hosts: names and addresses, as `keys.plain_host` writes them, at least one.
        now: with its time zone.
        days: how long it lasts; not longer than the authority.
    """
    from cryptography.x509 import BasicConstraints, ExtendedKeyUsage, SubjectAlternativeName
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ends = min(now + timedelta(days=days), authority.not_valid_after_utc)
    begun = _begun(_name("edgetune server"), authority.subject, key, signer.public_key(), now, ends)
    built = (
        begun.add_extension(BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
    )
    return _signed(built, signer)


def certificate_pem(certificate: Certificate) -> bytes:
    """Return a certificate as a file."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _begun(
    subject: Name,
    issuer: Name,
    key: EllipticCurvePublicKey,
    signer: EllipticCurvePublicKey,
    now: datetime,
    ends: datetime,
) -> CertificateBuilder:
    from cryptography.x509 import (
        AuthorityKeyIdentifier,
        CertificateBuilder,
        SubjectKeyIdentifier,
        random_serial_number,
    )

    return (
        CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(ends)
        .add_extension(SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _usage(*, signs: bool) -> KeyUsage:
    from cryptography.x509 import KeyUsage

    return KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> Name:
    from cryptography.x509 import Name, NameAttribute
    from cryptography.x509.oid import NameOID

    return Name([NameAttribute(NameOID.COMMON_NAME, common)])


def _general(host: str) -> GeneralName:
    from cryptography.x509 import DNSName, IPAddress

    try:
        return IPAddress(ip_address(host))
    except ValueError:
        return DNSName(host)


def _signed(builder: CertificateBuilder, key: EllipticCurvePrivateKey) -> Certificate:
    from cryptography.hazmat.primitives.hashes import SHA256

    return builder.sign(key, SHA256())
