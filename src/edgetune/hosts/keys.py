"""What a server reads of its folder of keys: the devices that it knows, and its own certificate; and a device's key."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from datetime import datetime, timezone
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.errors import ConfigError
from edgetune.hosts.pem import (
    node_public_key,
    public_pem,
    read_certificates,
    read_node_key,
    read_node_public_key,
    read_private_key,
    read_small,
    require_cryptography,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

DEVICES, KEYS = "devices", "keys"
"""Folders of public and of private keys."""
AUTHORITY, CERTIFICATE, SERVER_KEY, TOKEN = "ca.pem", "server.pem", "server.key", "status.token"
"""Files of the server; the authority's certificate is what a device needs."""
_NAME = re.compile(r"(0|[1-9][0-9]{0,6})\.pub")
_SHOWN = 16
"""Characters of a fingerprint, 6 bits each: enough that nobody finds two keys that share them by chance."""
_SHORTEST_TOKEN = 32
"""Characters of a token that nobody guesses."""


def registered(certs: Path) -> dict[int, bytes]:
    """Return the public keys that a server knows, by device.

    Args:
        certs: the folder of `edgetune certs`; its `devices` holds one file `<id>.pub` a device.

    Returns:
        Number to key, ascending from 0 without a gap: PEM, SubjectPublicKeyInfo, as Flower writes it, whatever white
        space the file has.

    Raises:
        ConfigError: there is no key; a file there is none, or of another kind; two devices have the same; a number is
            missing. Names the file.
        MissingExtraError: `cryptography` is not installed.
    """
    require_cryptography("reading the devices' keys")
    folder, files = certs / DEVICES, public_files(certs)
    if not files:
        raise ConfigError(
            "no device has a key here", where=folder, hint=f"edgetune certs {certs} --devices N"
        )
    found, owner = dict[int, bytes](), dict[bytes, int]()
    for device, path in files.items():
        key = public_pem(read_node_public_key(path))
        if key in owner:
            what = f"devices {owner[key]} and {device} have the same key"
            raise ConfigError(what, where=path, hint="every device needs a key of its own")
        found[device], owner[key] = key, device
    missing = next((device for device in range(len(found)) if device not in found), None)
    if missing is not None:
        what = f"there is no {missing}.pub, and devices are numbered from 0 without a gap"
        hint = f"edgetune certs {certs} --devices {max(found) + 1} makes what is missing"
        raise ConfigError(what, where=folder, hint=hint)
    return found


def public_files(certs: Path) -> dict[int, Path]:
    """Return the files of public keys by device, ascending; none where the folder is not there.

    Raises:
        ConfigError: another file is among them, or the folder cannot be read.
    """
    folder, found = certs / DEVICES, dict[int, Path]()
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    except OSError as error:
        what = "cannot read the folder of public keys"
        raise ConfigError(what, where=folder, hint=error.strerror) from error
    for name in names:
        if name.startswith("."):  # what a killed writer left, and what file managers leave
            continue
        if not _NAME.fullmatch(name):
            what = "a file that is no device's public key, which is called <number>.pub"
            raise ConfigError(what, where=folder / name, hint="move it elsewhere")
        found[int(name.removesuffix(".pub"))] = folder / name
    return dict(sorted(found.items()))


def fingerprint(pem: bytes) -> str:
    """Return what people compare of a device's public key.

        SHA256: + the first 16 characters of base64(sha256(DER of the key))

    Raises:
        ConfigError: it is no such key.
        MissingExtraError: `cryptography` is not installed.
    """
    require_cryptography("reading a key")
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = node_public_key(pem, "the public key")
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return f"SHA256:{base64.b64encode(digest).decode()[:_SHOWN]}"


def read_key(path: Path) -> EllipticCurvePrivateKey:
    """Return a device's private key.

    Raises:
        ConfigError: the file cannot be read, holds no private key, one with a password, or one of another kind.
        MissingExtraError: `cryptography` is not installed.
    """
    require_cryptography("reading the device's key")
    return read_node_key(path)


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """What a server shows who it is with.

    Args:
        authority: the certificates that its own is checked against.
        certificate: its own, and those between the two if there are any.
        key: the private key of its certificate.
        token: what `edgetune status` must say to be answered.
        ends: when the first of these certificates expires, with its time zone.
    """

    authority: Path
    certificate: Path
    key: Path
    token: str
    ends: datetime


def server_files(certs: Path, *, now: datetime | None = None) -> ServerFiles:
    """Return the server's files, checked: what is wrong with them is said here, not by a failed handshake.

    Args:
        certs: the folder of `edgetune certs`; certificates of another authority do as well.
        now: what time it is, with its time zone; the clock's if not given.

    Raises:
        ConfigError: a file is missing or holds something else; a certificate is expired or not valid yet; the key is
            that of another certificate; the authority is another one. Says how to renew.
        MissingExtraError: `cryptography` is not installed.
    """
    require_cryptography("reading the server's certificate")
    authority, certificate, key = (certs / name for name in (AUTHORITY, CERTIFICATE, SERVER_KEY))
    trusted, chain = read_certificates(authority), read_certificates(certificate)
    at = datetime.now(timezone.utc) if now is None else now
    renew = f"edgetune certs {certs} makes a new one"
    for path, ones, hint in ((authority, trusted, NEW_AUTHORITY), (certificate, chain, renew)):
        for one in ones:
            check_dates(one, at, path, hint)
    if public_pem(read_private_key(key).public_key()) != public_pem(chain[0].public_key()):
        raise ConfigError(f"this key is not that of {CERTIFICATE}", where=key, hint=renew)
    if not any(is_issued_by(chain[-1], one) for one in trusted):
        raise not_of_authority(certificate)
    ends = min(one.not_valid_after_utc for one in (*trusted, *chain))
    return ServerFiles(authority, certificate, key, _token(certs / TOKEN), ends)


NEW_AUTHORITY = "edgetune certs NEW-FOLDER makes another authority, which every device must be given"


def not_of_authority(certificate: Path) -> ConfigError:
    """Return the error about a server's certificate that devices would not trust."""
    what = f"this certificate is not one of the authority in {AUTHORITY}: no device would trust it"
    return ConfigError(what, where=certificate, hint="move it elsewhere and run edgetune certs again")


def check_dates(certificate: Certificate, now: datetime, where: Path, hint: str) -> None:
    """Make sure that a certificate is valid now.

    Raises:
        ConfigError: it is expired, or not valid yet.
    """
    if now > certificate.not_valid_after_utc:
        what = f"this certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(what, where=where, hint=hint)
    if now < certificate.not_valid_before_utc:
        what = f"this certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        raise ConfigError(f"{what}, and it is {now:%Y-%m-%d %H:%M}", where=where, hint="set the clock")


def is_issued_by(certificate: Certificate, issuer: Certificate) -> bool:
    """Say whether a certificate carries the signature of another one's key."""
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def check_hosts(certificate: Path, host: str) -> None:
    """Make sure that devices which reach a server by a name or an address will accept its certificate.

    Args:
        certificate: the server's.
        host: a DNS name or an IP address; `0.0.0.0`, `::` and nothing, which stand for all of a machine's addresses,
            say nothing about the name that devices use and are accepted.

    Raises:
        ConfigError: the certificate is for other hosts; names them.
        MissingExtraError: `cryptography` is not installed.
    """
    require_cryptography("reading the server's certificate")
    known, asked = hosts_of(read_certificates(certificate)[0]), plain_host(host)
    if asked in ("", "0.0.0.0", "::") or asked in known:
        return
    first, _, domain = asked.partition(".")
    if first and domain and not is_address(asked) and f"*.{domain}" in known:
        return
    what = f"this certificate is not for {asked!r} but for {', '.join(known) or 'no host'}"
    hint = f"edgetune certs {certificate.parent} --host {asked} makes one that is"
    raise ConfigError(what, where=certificate, hint=hint)


def hosts_of(certificate: Certificate) -> list[str]:
    """Return the names and addresses that a certificate is for, as `plain_host` writes them."""
    from cryptography.x509 import DNSName, ExtensionNotFound, IPAddress, SubjectAlternativeName

    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except (ExtensionNotFound, ValueError):  # none, or one that cannot be read
        return []
    dns = [plain_host(name) for name in names.get_values_for_type(DNSName)]
    return [*dns, *(str(address) for address in names.get_values_for_type(IPAddress))]


def plain_host(host: str) -> str:
    """Return a host in the one spelling that is compared: lower case, an address without brackets or leading zeros."""
    text = host.strip().lower().removesuffix(".")
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return str(ip_address(bare)) if is_address(bare) else text


def is_address(host: str) -> bool:
    """Say whether a host is an IP address, without brackets."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _token(path: Path) -> str:
    token = read_small(path, "the token").decode("ascii", "replace").strip()
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not re.fullmatch(r"[\w-]+", token):
        what = f"this is not a token: one line of at least {_SHORTEST_TOKEN} letters, digits, - and _"
        raise ConfigError(what, where=path, hint="remove the file and run edgetune certs again")
    return token
