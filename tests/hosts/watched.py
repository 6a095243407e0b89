"""Put on PYTHONPATH as sitecustomize.py: every name that Python looks up and every address that it calls is noted.

EDGETUNE_TEST_NOTES names the file; EDGETUNE_TEST_OLD makes this process another version, with other digests.
"""

import os
import socket

_resolve, _connect, _connect_ex = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex


def _note(what: str, where: object) -> None:
    with open(os.environ["EDGETUNE_TEST_NOTES"], "a") as notes:  # noqa: PTH123
        notes.write(f"{what} {where}\n")


def _resolved(host, *rest, **named):  # type: ignore[no-untyped-def]
    _note("name", host)
    return _resolve(host, *rest, **named)


def _connected(self, address):  # type: ignore[no-untyped-def]
    _note("call", address[0] if isinstance(address, tuple) else f"file {address!r}")
    return _connect(self, address)


def _connected_ex(self, address):  # type: ignore[no-untyped-def]
    _note("call", address[0] if isinstance(address, tuple) else f"file {address!r}")
    return _connect_ex(self, address)


if os.environ.get("EDGETUNE_TEST_NOTES"):
    socket.getaddrinfo = _resolved
    socket.socket.connect, socket.socket.connect_ex = _connected, _connected_ex
if os.environ.get("EDGETUNE_TEST_OLD"):
    from edgetune.methods.method import TuningMethod

    TuningMethod.digest = property(lambda self: "0" * 64)
