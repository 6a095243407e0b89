"""`certs`: the keys of a small fleet."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgetune.cli.options import folder
from edgetune.hosts import PORT

if TYPE_CHECKING:
    from edgetune.hosts.certs import Made

FOR_TESTING = (
    "This authority is made for testing and for a small fleet of your own: whoever has ca.key can pretend to be the "
    "server. Keep that file to yourself, best on another disk, or bring certificates of an authority that you trust."
)


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(certs)


def certs(
    out: Annotated[
        Path,
        typer.Argument(
            parser=folder, metavar="OUT", help="Folder for keys and certificates; what is there stays."
        ),
    ],
    devices: Annotated[int, typer.Option("--devices", help="Devices that have a key, at least.")] = 1,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            help="Name or address by which devices reach the server, beside localhost and this machine's name. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    days: Annotated[int, typer.Option("--days", help="Days a new server certificate lasts.")] = 365,
) -> None:
    """Make keys for a server and its devices: a test authority, a server certificate, a key for every device."""
    from edgetune.hosts.certs import checked_host, make_certs

    made = make_certs(out, devices, host or (), days)
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(FOR_TESTING)
    for line in _made(out, made):
        say(line)
    server = checked_host(host[0]) if host else _reached(made.hosts)
    say(f"on the server:  {_server(out)}")
    for device, key in made.devices.items():
        say(_device(out, device, key, server, new=device in made.new))


def _made(out: Path, made: Made) -> list[str]:
    """Say what is new and what stays."""
    hosts = ", ".join(made.hosts)
    certificate = f"new, because {made.certificate}" if made.certificate else "the old one"
    count, new = len(made.devices), len(made.new)
    return [
        f"{out / 'ca.pem'}: the authority, {'new' if made.authority else 'the old one'}",
        f"{out / 'server.pem'}: {certificate}; for {hosts}; until {made.ends:%Y-%m-%d}",
        f"{out / 'devices'}: {count:,} {'device' if count == 1 else 'devices'}, {new:,} of them new",
    ]


def _reached(hosts: tuple[str, ...]) -> str:
    """Return the name under which devices most likely reach the server: one that is not of its own machine alone."""
    from edgetune.hosts.certs import ALWAYS

    return next((one for one in reversed(hosts) if one not in ALWAYS and not one.startswith("*")), "HOST")


def _server(out: Path) -> str:
    return f"edgetune server --out DIR --listen 0.0.0.0:{PORT} --certs {shlex.quote(str(out))}"


def _device(out: Path, device: int, key: bytes, server: str, *, new: bool) -> str:
    """Return the line to run on a device, with the two files to copy there before."""
    from edgetune.hosts.keys import KEYS, fingerprint

    at = f"[{server}]" if ":" in server else server
    private = out / KEYS / f"{device}.key"
    command = f"edgetune device --server {at}:{PORT} --data local.jsonl --key {device}.key"
    return (
        f"on device {device} ({fingerprint(key)}{', new' if new else ''}; copy {private} and {out / 'ca.pem'} there):  "
        f"{command}"
    )
