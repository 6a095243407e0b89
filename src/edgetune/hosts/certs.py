"""The folder of a small fleet's keys: a test authority, the server's certificate, and a key for every device."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune.core.errors import ConfigError
from edgetune.core.files import PARTIAL, PRIVATE, owned_folder, unwritable, write_atomic
from edgetune.hosts.authority import certificate_pem, new_authority, new_certificate, new_key
from edgetune.hosts.keys import (
    AUTHORITY,
    CERTIFICATE,
    DEVICES,
    KEYS,
    NEW_AUTHORITY,
    SERVER_KEY,
    TOKEN,
    check_dates,
    hosts_of,
    is_address,
    is_issued_by,
    not_of_authority,
    plain_host,
    public_files,
    registered,
)
from edgetune.hosts.pem import (
    private_pem,
    public_pem,
    read_certificates,
    read_curve_key,
    read_node_key,
    read_node_public_key,
    read_private_key,
    require_cryptography,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate

AUTHORITY_KEY = "ca.key"
MOST_DEVICES, MOST_DAYS = 10_000, 36_500
TOKEN_BYTES = 32
PUBLIC = 0o644
RENEWED = timedelta(days=30)
"""How long before its end a certificate is renewed, at most a third of its time: a call a month keeps it valid."""
LONGEST_HOST = 253
_HOST = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBERS = re.compile(r"[0-9.]+")
"""An address that is none."""
ALWAYS = ("localhost", "127.0.0.1", "::1")
"""What any server is called on its own machine."""


@dataclass(frozen=True, slots=True)
class Made:
    """What `make_certs` found and made.

    Args:
        devices: public keys by device, all that there are.
        new: devices that got a key now, ascending.
        authority: whether the authority is new.
        certificate: why there is a new server certificate; empty if the old one stays.
        hosts: what the certificate is for.
        ends: when it expires.
    """

    devices: dict[int, bytes]
    new: tuple[int, ...]
    authority: bool
    certificate: str
    hosts: tuple[str, ...]
    ends: datetime


def make_certs(
    out: Path, devices: int, hosts: Sequence[str] = (), days: int = 365, *, now: datetime | None = None
) -> Made:
    """Make what is missing in a folder of keys; an authority or a key that is there is never written over.

    A public key whose private one is not there belongs to a device that has it, and stays. A new host, or the end
    of the old certificate, makes a new one of the same authority and for the same key, which no device notices.

    Args:
        out: the folder; created if missing.
        devices: how many devices there should be at least, 1 to 10,000.
        hosts: names and addresses by which devices reach the server, beside those of the certificate that is there or,
            for the first one, `localhost`, its addresses and this machine's name.
        days: how long a new server certificate lasts, 1 to 36,500.
        now: what time it is, with its time zone; the clock's if not given.

    Raises:
        ConfigError: a number out of range; no host name; the authority is expired, or its key is not there; a file
            holds something else, or belongs to another.
        OutputError: the folder cannot be written to, or another command is at work in it.
        MissingExtraError: `cryptography` is not installed.
    Cost: some milliseconds a device, its two files written through to the disk.
    Source: RFC 5280 for the certificates; keys as Flower's `generate_key_pairs`.
    """
    require_cryptography("making keys")
    _check_number("devices", devices, MOST_DEVICES)
    _check_number("days", days, MOST_DAYS)
    asked = [checked_host(host) for host in hosts]
    at = (datetime.now(timezone.utc) if now is None else now).replace(microsecond=0)
    with owned_folder(out):
        _private_folder(out / KEYS)
        known = public_files(out)
        fresh = _authority(out, at, days)
        why = _certificate(out, asked, at, days)
        if not (out / TOKEN).exists():
            _write(out / TOKEN, f"{secrets.token_urlsafe(TOKEN_BYTES)}\n".encode(), private=True)
        wanted = range(max(devices, max(known, default=-1) + 1))
        new = tuple(device for device in wanted if _device(out, device))
        one = read_certificates(out / CERTIFICATE)[0]
        return Made(registered(out), new, fresh, why, tuple(hosts_of(one)), one.not_valid_after_utc)


def _authority(out: Path, now: datetime, days: int) -> bool:
    """Make the authority of a folder if there is none, or check it; says whether it is new.

    The key is written first: a key alone is what a killed command left, and is used.
    """
    certificate = out / AUTHORITY
    if certificate.exists():
        for one in read_certificates(certificate):
            check_dates(one, now, certificate, NEW_AUTHORITY)
        return False
    _write(certificate, certificate_pem(new_authority(_key(out / AUTHORITY_KEY), now, days)))
    return True


def _certificate(out: Path, asked: Sequence[str], now: datetime, days: int) -> str:
    """Make a server certificate where one is needed; says why, nothing where the old one stays."""
    path, trusted = out / CERTIFICATE, read_certificates(out / AUTHORITY)
    old = read_certificates(path) if path.exists() else []
    if old and not any(is_issued_by(old[-1], one) for one in trusted):
        raise not_of_authority(path)
    known = hosts_of(old[0]) if old else _own_hosts()
    hosts = tuple(dict.fromkeys((*known, *asked)))
    why = _why_new(out, old[0], hosts[len(known) :], now) if old else "there was none"
    if why:
        signer = _signer(out, trusted[0])
        key = _key(out / SERVER_KEY).public_key()
        _write(path, certificate_pem(new_certificate(trusted[0], signer, key, hosts, now, days)))
    return why


def _why_new(out: Path, old: Certificate, hosts: Sequence[str], now: datetime) -> str:
    """Say why a certificate cannot stay, given the hosts that it is not for; nothing where it can."""
    key = out / SERVER_KEY
    if hosts:
        return f"it is for {', '.join(hosts)} as well"
    if _is_over(old, now, may_sign=(out / AUTHORITY_KEY).exists()):
        return f"the old one ends on {old.not_valid_after_utc:%Y-%m-%d}"
    if not key.exists() or public_pem(read_private_key(key).public_key()) != public_pem(old.public_key()):
        return "the key is another"
    return ""


def _is_over(certificate: Certificate, now: datetime, *, may_sign: bool) -> bool:
    """Say whether a certificate is expired, or will be soon and can be renewed now."""
    ends = certificate.not_valid_after_utc
    soon = min(RENEWED, (ends - certificate.not_valid_before_utc) / 3)
    return now > ends or (may_sign and now > ends - soon)


def _signer(out: Path, authority: Certificate) -> EllipticCurvePrivateKey:
    """Return the authority's key, which is needed for a new certificate alone and may lie elsewhere until then.

    Raises:
        ConfigError: it is not there, or another authority's.
    """
    path = out / AUTHORITY_KEY
    if not path.exists():
        what = "the authority's key is not here, and a new server certificate needs its signature"
        raise ConfigError(what, where=path, hint="bring it back for this command")
    key = read_curve_key(path)
    if public_pem(key.public_key()) != public_pem(authority.public_key()):
        raise ConfigError(f"this key is not that of {AUTHORITY}", where=path, hint=NEW_AUTHORITY)
    return key


def _key(path: Path) -> EllipticCurvePrivateKey:
    """Return the key in a file, made if there is none."""
    if path.exists():
        return read_curve_key(path)
    key = new_key()
    _write(path, private_pem(key), private=True)
    return key


def _device(out: Path, device: int) -> bool:
    """Make a device's key if it has none; says whether it did.

    The private one is written first: alone it is what a killed command left, and its public one follows.

    Raises:
        ConfigError: the two that are there do not belong together.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key

    public, private = out / DEVICES / f"{device}.pub", out / KEYS / f"{device}.key"
    if public.exists():
        known = public_pem(read_node_public_key(public))
        if private.exists() and public_pem(read_node_key(private).public_key()) != known:
            what = f"this key is not that of {DEVICES}/{public.name}"
            raise ConfigError(what, where=private, hint="move one of the two elsewhere")
        return False
    if private.exists():
        key = read_node_key(private)
    else:
        key = generate_private_key(SECP384R1())
        _write(private, private_pem(key), private=True)
    _write(public, public_pem(key.public_key()))
    return True


def _own_hosts() -> list[str]:
    """Return what any server may be called on its own machine, and this machine's name where it is one."""
    name = plain_host(socket.gethostname())
    return [*ALWAYS, *([name] if _HOST.fullmatch(name) and name not in ALWAYS else [])]


def checked_host(host: str) -> str:
    """Return a host as a certificate names it.

    Raises:
        ConfigError: it is neither a name nor an address, or stands for all addresses.
    """
    name = plain_host(host)
    where = f"--host {host}"
    if name in ("0.0.0.0", "::"):
        hint = "say the name or the address by which devices reach the server"
        raise ConfigError("no device can reach a server there", where=where, hint=hint)
    if is_address(name) and "%" not in name:  # a scope is of one machine's own
        return name
    if len(name) > LONGEST_HOST or not _HOST.fullmatch(name) or _NUMBERS.fullmatch(name):
        hint = "for example fleet.example.org or 192.168.1.10, without a port"
        raise ConfigError("neither a name nor an address of a host", where=where, hint=hint)
    return name


def _check_number(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ConfigError(f"{value} is not a number from 1 to {most:,}", where=f"--{name}")


def _private_folder(path: Path) -> None:
    """Create a folder that only its owner may enter, and remove what killed writers left there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        for left in path.glob(f"{PARTIAL}*"):
            left.unlink()
    except OSError as error:
        raise unwritable(error, path) from error


def _write(path: Path, data: bytes, *, private: bool = False) -> None:
    write_atomic(path, lambda temporary: temporary.write_bytes(data), mode=PRIVATE if private else PUBLIC)
