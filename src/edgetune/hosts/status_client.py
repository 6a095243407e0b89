"""Asks a server how its run stands, over TLS, with the standard library alone."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.core.errors import ConfigError, HostError, UnreachableError
from edgetune.hosts.status_fields import REPLY, checked

PATH = "/v1/edgetune/status"
"""Where a server answers."""
AUTHORITY, TOKEN = "ca.pem", "status.token"
"""Files of a folder of certificates: who signs servers' certificates, and what a server asks of who wants to know."""
PATIENCE = 10.0
"""Seconds that a server has to answer."""
LONGEST = 1 << 24
"""Bytes of a reply; a million rounds need more, and nobody reads them."""
HOST_PORT = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.%]+)\]|(?P<name>[^\s:/\[\]@]+)):(?P<port>[0-9]{1,5})")
WRONG_HOST, WRONG_IP, EXPIRED, EARLY = 62, 64, 10, 9
"""OpenSSL's numbers of what is wrong with a certificate (X509_V_ERR_*)."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens.

    Args:
        host: name or number, without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        """Return `HOST:PORT`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(text: str) -> Address:
    """Return the address that `HOST:PORT`, `[IPv6]:PORT` or a URL of just these says.

    Raises:
        ConfigError: if it says none.
    """
    found = HOST_PORT.fullmatch(re.sub(r"\Ahttps?://|/\Z", "", text))
    if found is None or not 1 <= int(found["port"]) <= 65535:
        hint = "HOST:PORT, for example localhost:9092 or [::1]:9092"
        raise ConfigError("not the address of a server", where=text, hint=hint)
    return Address(found["six"] or found["name"], int(found["port"]))


class StatusClient:
    """Asks one server again and again.

    Args:
        address: of the server.
        certs: folder with the authority that signed its certificate and the token it asks for; None only without TLS.
        insecure: speak http; whoever is in between can read along, the token included.

    Raises:
        ConfigError: if a file is missing or damaged, or TLS is wanted without a folder.
    """

    def __init__(self, address: Address, certs: Path | None = None, *, insecure: bool = False) -> None:
        if certs is None and not insecure:
            hint = "give --certs, the folder that edgetune certs wrote"
            raise ConfigError("who the server is cannot be known", where=str(address), hint=hint)
        self.address, self._insecure = address, insecure
        self._token = None if certs is None else _token(certs / TOKEN)
        self._context = None if insecure or certs is None else _authority(certs / AUTHORITY)

    def now(self) -> dict[str, Any]:
        """Return how the server's run stands, as `hosts.status.Statuses.now` does there.

        Raises:
            UnreachableError: if nobody answers there, or not in time.
            HostError: if who answers is not the server that the authority knows, does not know the token, or is no
                server of edgetune.
        """
        code, body = self._asked()
        if code in (401, 403):
            raise self._error("the server does not know this token", "give the --certs that the server has")
        if code == 503:
            raise UnreachableError("the server is not ready yet", where=str(self.address), hint="try again")
        if code != 200:
            raise self._error(f"no server of edgetune: it answers with HTTP status {code}")
        try:
            return checked(json.loads(body), REPLY)
        except (ValueError, RecursionError) as error:
            raise self._error("its answer is no status", "is it a server of this version?") from error

    def _asked(self) -> tuple[int, bytes]:
        """Send one request; neither a proxy nor another address that the server names gets to see the token."""
        host, port = self.address.host, self.address.port
        line: http.client.HTTPConnection = (
            http.client.HTTPConnection(host, port, timeout=PATIENCE)
            if self._context is None
            else http.client.HTTPSConnection(host, port, timeout=PATIENCE, context=self._context)
        )
        header = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            line.request("GET", PATH, headers=header)
            reply = line.getresponse()
            body = reply.read(LONGEST + 1)
        except ssl.SSLCertVerificationError as error:
            raise self._error(*_untrusted(error, host)) from error
        except ssl.SSLError as error:
            raise self._error(
                "no TLS there", "a server that was started with --insecure is asked so too"
            ) from error
        except OSError as error:
            raise self._unreachable(error) from error
        except UnicodeError as error:  # a name that no name server can be asked for
            raise self._error("no such host") from error
        except (http.client.HTTPException, ValueError) as error:
            raise self._error("no server of edgetune: what it answers is no HTTP") from error
        finally:
            line.close()
        if len(body) > LONGEST:
            raise self._error("its answer does not end")
        return reply.status, body

    def _error(self, what: str, hint: str | None = None) -> HostError:
        return HostError(what, where=str(self.address), hint=hint)

    def _unreachable(self, error: OSError) -> UnreachableError:
        hint = "is edgetune server running there, and is the port right?"
        if isinstance(error, TimeoutError):
            what = f"no answer in {PATIENCE:.0f} s"
        elif isinstance(error, socket.gaierror):
            what = "no such host"
        elif isinstance(error, ConnectionResetError):
            what = "it hung up"
            hint = "a server with TLS is asked without --insecure" if self._insecure else hint
        else:
            what = f"no server there: {(error.strerror or str(error)).lower()}"
        return UnreachableError(what, where=str(self.address), hint=hint)


def _untrusted(error: ssl.SSLCertVerificationError, host: str) -> tuple[str, str | None]:
    """Say what is wrong with a server's certificate, and what helps."""
    again = "run edgetune certs again on the server's folder, and start the server again"
    if error.verify_code in (EXPIRED, EARLY):
        when = "has expired" if error.verify_code == EXPIRED else "is not valid yet"
        return f"the server's certificate {when}", f"{again}; or is the clock of this machine wrong?"
    if error.verify_code in (WRONG_HOST, WRONG_IP):
        return (
            f"the server's certificate is not for {host}",
            f"ask it by a name that it has, or {again} with --host",
        )
    return "another authority signed the server's certificate", "give the --certs that the server has"


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or "no token"
        raise ConfigError(f"cannot read the token: {said}", where=path, hint="run edgetune certs") from error
    if not token or not token.isprintable():
        raise ConfigError("no token in this file", where=path, hint="run edgetune certs")
    return token


def _authority(path: Path) -> ssl.SSLContext:
    """Return what trusts this authority alone."""
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        said = "no such file" if isinstance(error, FileNotFoundError) else "no certificate of an authority"
        raise ConfigError(said, where=path, hint="give the folder that edgetune certs wrote") from error
