"""The process on a device, from its start to the end of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import ConfigError, DataError
from edgetune.core.progress import Progress, silent
from edgetune.hosts.keys import AUTHORITY, read_key
from edgetune.hosts.link import Post
from edgetune.hosts.resident import Own, Resident

SOON, LATER, GROWTH = 0.05, 5.0, 1.5
"""Seconds between two looks for messages: after one was there, the most that they grow to while there is none, and how
fast they do. A look costs about a kilobyte."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Which server, and who this device is.

    Args:
        server: host and port.
        key: file of the private key.
        authority: certificate of the authority that signed the server's; beside the key or a folder up if not given.
        insecure: without TLS.
        give_up: seconds without an answer of the server after which the device ends; never if not given.
    """

    server: str
    key: Path
    authority: Path | None = None
    insecure: bool = False
    give_up: float | None = None


def run_device(
    connection: Connection, own: Own, *, say: Callable[[str], None], progress: Progress = silent
) -> None:
    """Take part in a server's run until it is over.

    Args:
        connection: to the server.
        own: data, model and limits of this device.
        say: told in one line what happens.
        progress: told after every local step.

    Raises:
        ConfigError: key or authority cannot be read.
        DataError: there is no such file of records.
        HostError: the server refuses this device, or this device the server; or it gave up.
        EdgetuneError: what keeps this device out of the run: another base, another method, unreadable data.
        MissingExtraError: Flower is not installed.
    """
    from edgetune.hosts.flower.switches import switch_off

    switch_off()
    from edgetune.hosts.flower.supernode import SuperNode

    if not own.data.exists():
        raise DataError("no such file", where=own.data, hint="--data FILE with this device's records")
    key = read_key(connection.key)
    authority = None if connection.insecure else trusted(connection)
    resident = Resident(own, tell=say, progress=progress)
    with SuperNode(connection.server, key, authority, give_up=connection.give_up, tell=say) as post:
        say(f"connected to {connection.server}{' without TLS' if connection.insecure else ''}")
        attend(post, resident)
    say("the run is over")


def attend(post: Post, resident: Resident, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """Answer messages until the run is over, or something keeps this device out of it.

    Args:
        post: where they come from.
        resident: answers them.
        sleep: waits so many seconds.
    """
    pause = SOON
    while not resident.over:
        came = post.receive()
        if came is None:
            sleep(pause)
            pause = min(GROWTH * pause, LATER)
            continue
        pause = SOON
        post.reply(came[0], resident.answered(came[1]))
        if resident.barred is not None:
            raise resident.barred


def trusted(connection: Connection) -> Path:
    """Return the file of the authority's certificate.

    Raises:
        ConfigError: if it is nowhere.
    """
    if connection.authority is not None:
        return connection.authority
    for folder in connection.key.resolve().parents[:2]:
        if (folder / AUTHORITY).is_file():
            return folder / AUTHORITY
    raise ConfigError(
        f"there is no {AUTHORITY} beside it or one folder up", where=connection.key,
        hint="--ca FILE: the ca.pem of the server's `edgetune certs`",
    )  # fmt: skip
