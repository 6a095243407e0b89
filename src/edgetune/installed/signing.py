"""Signatures of manifests: Ed25519, by the library `cryptography`; a device trusts one public key and no other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.errors import ConfigError, DigestError, MissingExtraError
from edgetune.core.files import PRIVATE, write_atomic
from edgetune.installed.manifest import Manifest

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

LARGEST = 1 << 16
"""Bytes of a key's file."""
PUBLIC = ".pub"
"""What is put behind a private key's name for its public one."""
PURPOSE = b"edgetune update\n"
"""Precedes what is signed, so that no signature of another purpose counts."""
KEYS = "edgetune sign --new KEY makes a pair"


def new_key(path: Path) -> Path:
    """Write a private key, which only its owner may read, and beside it `NAME.pub`.

    Returns:
        The file of the public key, which devices are given.

    Raises:
        ConfigError: if there is a file of either name already.
        OutputError: if they cannot be written.
        MissingExtraError: if `cryptography` is not installed.
    """
    _require("making a key")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    public = path.with_name(path.name + PUBLIC)
    for file in (path, public):
        if file.exists():
            raise ConfigError("there is a file here already, and a key is never overwritten", where=file)
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    shown = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_atomic(path, lambda file: file.write_bytes(private), mode=PRIVATE)
    write_atomic(public, lambda file: file.write_bytes(shown))
    return public


def sign(manifest: Manifest, key: Path) -> Manifest:
    """Return a manifest signed with a private key.

        signature = Ed25519(key, "edgetune update" newline, canonical JSON without the signature)

    Raises:
        ConfigError: if the file holds no such key.
        MissingExtraError: if `cryptography` is not installed.
    """
    private = _private(key)
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return manifest.with_signature(public.hex(), private.sign(PURPOSE + manifest.payload).hex())


def check_signature(manifest: Manifest, public: str, where: str | Path) -> None:
    """Make sure that a manifest was signed with the key that is trusted.

    Args:
        manifest: as read.
        public: the trusted key, raw, in hexadecimal (`public_key`); what the manifest says of its key counts for
            nothing but a clearer error.
        where: where the manifest is from, for errors.

    Raises:
        DigestError: if it is not signed, by another key, or not what was signed.
        MissingExtraError: if `cryptography` is not installed.
    """
    _require("checking a signature")
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if manifest.signature is None:
        raise DigestError(
            "this manifest is not signed", where=where, hint="edgetune sign it, or pass --unsigned"
        )
    if manifest.signature["key"] != public:
        said = manifest.signature["key"][:12]
        raise DigestError(
            f"this manifest is signed by the key {said}, not by the trusted {public[:12]}", where=where
        )
    try:
        signature = bytes.fromhex(manifest.signature["value"])
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(
            signature, PURPOSE + manifest.payload
        )
    except (InvalidSignature, ValueError) as error:
        raise DigestError(
            "the signature does not fit this manifest: it was changed after it was signed",
            where=where,
            hint="get it again from who signed it",
        ) from error


def public_key(path: Path) -> str:
    """Return a public key's 32 bytes in hexadecimal, from a PEM file.

    Raises:
        ConfigError: if the file holds no Ed25519 public key.
        MissingExtraError: if `cryptography` is not installed.
    """
    _require("reading a key")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    data = _read(path)
    if b"PRIVATE KEY" in data:
        raise ConfigError("this is a private key", where=path, hint=f"give devices {path.name}{PUBLIC}")
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("this is not a public key in PEM form", where=path, hint=KEYS) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("this is a key of another kind than Ed25519", where=path, hint=KEYS)
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def _private(path: Path) -> Ed25519PrivateKey:
    _require("signing")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            "this is not a private key in PEM form without a password", where=path, hint=KEYS
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError("this is a key of another kind than Ed25519", where=path, hint=KEYS)
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(LARGEST)
    except OSError as error:
        raise ConfigError(f"cannot read this key: {error.strerror}", where=path, hint=KEYS) from error


def _require(purpose: str) -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("cryptography", "sign", purpose) from error
