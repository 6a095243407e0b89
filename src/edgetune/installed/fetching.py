"""Fetch small files beside a manifest: from a folder, over HTTPS, or over HTTP from this very machine."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from edgetune.core.errors import ConfigError, HostError, ModelError, UnreachableError
from edgetune.installed.manifest import LARGEST

SECONDS = 30.0
"""Without a byte, after which a source counts as silent."""
LONGEST = 600.0
"""Seconds that one file may take."""
AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class Source:
    """Where a manifest and its ledgers are.

    Args:
        address: of the manifest: a path, `https://...`, or `http://` of a loopback address.

    Raises:
        ConfigError: for another kind of address.
    """

    address: str

    def __post_init__(self) -> None:
        if "://" not in self.address:
            return
        parts = urlsplit(self.address)
        if parts.scheme == "https" and parts.hostname:
            return
        if parts.scheme == "http" and _is_loopback(parts.hostname or ""):
            return
        raise ConfigError(
            "updates come over https, or over http from this machine only", where=self.address[:200]
        )

    @property
    def remote(self) -> bool:
        """Whether it is reached over HTTP."""
        return "://" in self.address

    def manifest(self) -> bytes:
        """Return the manifest's bytes.

        Raises:
            ModelError: if there is none, or more than a manifest can be.
            HostError: if the other side refuses; UnreachableError if it is silent.
        """
        return self._bytes(self.address, LARGEST)

    def beside(self, name: str, size: int) -> bytes:
        """Return a file beside the manifest, no more than it is said to have.

        Args:
            name: a file's name, no path.
            size: bytes that it shall have.

        Raises:
            ModelError: if there is none, or it is larger.
            HostError, UnreachableError: as `manifest`.
        """
        place = urljoin(self.address, name) if self.remote else str(Path(self.address).parent / name)
        return self._bytes(place, size)

    def _bytes(self, place: str, most: int) -> bytes:
        if self.remote:
            return _fetched(place, most)
        try:
            with Path(place).open("rb") as file:
                data = file.read(most + 1)
        except (OSError, ValueError) as error:
            what = error.strerror if isinstance(error, OSError) else error
            raise ModelError(f"cannot read this file: {what}", where=place) from error
        return _within(data, most, place)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address that was checked is the one that is read."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def _fetched(place: str, most: int) -> bytes:
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if urlsplit(place).scheme == "http":  # a proxy would be another machine
        handlers.append(urllib.request.ProxyHandler({}))
    end = time.monotonic() + LONGEST
    found = bytearray()
    try:
        with urllib.request.build_opener(*handlers).open(place, timeout=SECONDS) as answer:
            while part := answer.read1(min(AT_ONCE, most + 1 - len(found))):
                found += part
                if len(found) > most:
                    break
                if time.monotonic() > end:
                    raise UnreachableError(f"it sent {len(found)} bytes in {LONGEST:g} seconds", where=place)
            short = answer.length
    except urllib.error.HTTPError as error:
        raise HostError(f"the server answers {error.code}", where=place) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(f"cannot be fetched: {reason}", where=place, hint="try again later") from error
    data = _within(bytes(found), most, place)
    if short:
        raise UnreachableError(f"the server stopped {short} bytes before the end", where=place)
    return data


def _within(data: bytes, most: int, place: str) -> bytes:
    if len(data) > most:
        raise ModelError(f"it has more than the {most} bytes that it may have", where=place)
    return data


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
