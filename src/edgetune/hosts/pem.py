"""Keys and certificates in PEM files: read with one sentence about whatever is wrong with them, and written."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
    from cryptography.x509 import Certificate

LARGEST = 1 << 16
"""Bytes of a file with a key or with certificates; theirs have some hundreds or thousands."""
KIND = "an elliptic curve key, P-384"
OWN = "use one that edgetune certs wrote"


def require_cryptography(purpose: str) -> None:
    """Make sure that keys and certificates can be read.

    Raises:
        MissingExtraError: the library is not installed.
    """
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("cryptography", "flower", purpose) from error


def read_private_key(path: Path) -> PrivateKeyTypes:
    """Return a private key of any kind.

    Raises:
        ConfigError: the file cannot be read, holds no private key, or one with a password.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = read_small(path, "the private key")
    if b"ENCRYPTED" in data:
        what = "this private key has a password, and nobody is there to type it"
        hint = f"openssl pkcs8 -topk8 -nocrypt -in {path} -out NEW takes it off"
        raise ConfigError(what, where=path, hint=hint)
    if b"PRIVATE KEY" not in data and b"PUBLIC KEY" in data:
        raise ConfigError("this is a public key, not a private one", where=path, hint=OWN)
    try:
        with warnings.catch_warnings():  # about kinds that are refused afterwards
            warnings.simplefilter("ignore")
            return load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("this is not a private key in PEM form", where=path, hint=OWN) from error


def read_curve_key(path: Path) -> EllipticCurvePrivateKey:
    """Return a private key on any elliptic curve: what authorities and servers have here.

    Raises:
        ConfigError: as `read_private_key`; it is of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    key = read_private_key(path)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError("this is another kind of key, not an elliptic curve key", where=path, hint=OWN)
    return key


def read_node_key(path: Path) -> EllipticCurvePrivateKey:
    """Return a private key of the kind that devices have.

    Raises:
        ConfigError: as `read_private_key`; it is of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1

    key = read_curve_key(path)
    if not isinstance(key.curve, SECP384R1):
        raise ConfigError(f"this is a key on the curve {key.curve.name}, not {KIND}", where=path, hint=OWN)
    return key


def read_node_public_key(path: Path) -> EllipticCurvePublicKey:
    """Return a public key of the kind that devices have.

    Raises:
        ConfigError: the file cannot be read, holds no public key, or one of another kind.
    """
    return node_public_key(read_small(path, "the public key"), path)


def node_public_key(data: bytes, where: str | Path) -> EllipticCurvePublicKey:
    """Return the public key in a PEM text.

    Args:
        where: named in errors.

    Raises:
        ConfigError: it holds none, or one of another kind than devices have.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in data:
        hint = "it belongs on its device alone: give the device a new key, and put the public one here"
        raise ConfigError("this is a private key", where=where, hint=hint)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("this is not a public key in PEM form", where=where, hint=OWN) from error
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP384R1):
        raise ConfigError(f"this is another kind of key, not {KIND}", where=where, hint=OWN)
    return key


def read_certificates(path: Path) -> list[Certificate]:
    """Return the certificates of a file, at least one.

    Raises:
        ConfigError: the file cannot be read, or holds none.
    """
    from cryptography.x509 import load_pem_x509_certificates

    data = read_small(path, "the certificate")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_pem_x509_certificates(data)
    except ValueError as error:
        raise ConfigError("this is not a certificate in PEM form", where=path, hint=OWN) from error


def public_pem(key: PublicKeyTypes) -> bytes:
    """Return a public key as PEM, SubjectPublicKeyInfo: what Flower's `public_key_to_bytes` gives."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: PrivateKeyTypes) -> bytes:
    """Return a private key as PEM, PKCS8, without a password."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_small(path: Path, what: str) -> bytes:
    """Return the bytes of a small regular file.

    Raises:
        ConfigError: it is not there, cannot be read, or is too large for what it should hold.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{what} is not a regular file", where=path)
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "edgetune certs OUT makes it"
        raise ConfigError(f"cannot read {what}: {reason}", where=path, hint=hint) from error
    if len(data) > LARGEST:
        raise ConfigError(f"more than {LARGEST:,} bytes, too many for {what}", where=path)
    return data
