"""`server` and `device`: the same federation with devices on other hosts."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.cli.options import Asked, Out, Quiet, Track, asking, columns
from edgetune.cli.runs import reported
from edgetune.core.errors import ConfigError
from edgetune.hosts import PORT

WHERE = ("model", "device", "residency", "data", "test_data", "columns", "held_out_category")
HOW = (
    "method",
    "participation",
    "rounds",
    "teacher",
    "learning_rate",
    "metric",
    "extract",
    "seed",
    "threads",
)
Certs = Annotated[Path, typer.Option("--certs", help="Folder of `edgetune certs`.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Without TLS: for a network of your own.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(server)
    app.command()(device)


@asking(*WHERE, *HOW)
def server(
    asked: Asked,
    out: Out = Path("run"),
    listen: Annotated[str, typer.Option(help="HOST:PORT to listen on.")] = f"0.0.0.0:{PORT}",
    certs: Certs = Path("certs"),
    insecure: Insecure = False,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.1, help="Seconds after which a round takes no more replies, if it has the minimum."
        ),
    ] = 600.0,
    wait: Annotated[
        int | None,
        typer.Option(
            min=0, show_default=False, help="Devices to wait for before the first round; those of a round."
        ),
    ] = None,
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Tune across devices on other hosts: hold the ledger, ask, combine; the same folder goes on."""
    console = Console()
    with Display(console, quiet=quiet) as display:
        from edgetune.hosts.serve import Listening, serve
        from edgetune.report.trackers import tracking
        from edgetune.run.names import EVENTS, LEDGER

        host, port = address(listen, "--listen")
        where = Listening(certs, host, port, insecure, timeout, wait)

        def say(line: str) -> None:
            console.print(line, highlight=False, soft_wrap=True, markup=False)

        log = out / EVENTS
        with reported(out), tracking(track or (), log, display.listen, display.warn) as told:
            serve(
                asked.resolve, out, where,
                command=shlex.join(["edgetune", *sys.argv[1:]]),
                listener=told, progress=display.progress, say=say,
            )  # fmt: skip
        from edgetune.core.ledger import read_ledger

        ledger = read_ledger(out / LEDGER)
    say(f"{out / LEDGER}: digest {ledger.digest[:12]}, round {ledger.round}")


def device(
    server: Annotated[str, typer.Option(help="HOST:PORT of the server.")],
    data: Annotated[Path, typer.Option(help="File of this device's records; they stay here.")],
    key: Annotated[Path, typer.Option(help="This device's private key, of `edgetune certs`.")],
    ca: Annotated[
        Path | None,
        typer.Option(
            show_default=False, help="ca.pem of the server; beside the key or a folder up if not given."
        ),
    ] = None,
    insecure: Insecure = False,
    model: Annotated[
        str | None,
        typer.Option(show_default=False, help="Where the base model is here; where the recipe says if not."),
    ] = None,
    method: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Your own .py file of the run's method, which is executed."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            show_default=False,
            help="Whom to learn from where the run has a teacher: your copy of it, or your file of `edgetune teach`.",
        ),
    ] = None,
    named: Annotated[
        str | None,
        typer.Option(
            "--columns", show_default=False, help="Names of columns: instruction=question,response=answer."
        ),
    ] = None,
    max_threads: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="CPU threads at most.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(show_default=False, help="Memory of this process at most: 2GB, 512MiB.")
    ] = None,
    only_when: Annotated[
        str | None,
        typer.Option(show_default=False, help="Work only when charging, idle, or hook:COMMAND says 0."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Folder for what is set aside on disk; in the cache if not."),
    ] = None,
    give_up: Annotated[
        float | None,
        typer.Option(
            min=0, show_default=False, help="Seconds without the server after which to end; never if not."
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Take part in a server's run with this device's own data, until the run is over."""
    console = Console()
    with Display(console, quiet=quiet, doing="waiting") as display:
        from edgetune.core.allocator import return_freed_blocks
        from edgetune.core.cache import cache_folder
        from edgetune.hosts.device import Connection, run_device
        from edgetune.hosts.limits import limits_of
        from edgetune.hosts.resident import Own

        return_freed_blocks()
        address(server, "--server")
        limits = limits_of(max_threads, max_memory, only_when)
        scratch = state or cache_folder("devices") / key.stem
        own = Own(data, columns(named) if named else None, model, method, scratch, limits, teacher)

        def say(line: str) -> None:
            if not quiet:
                console.print(
                    f"{time.strftime('%H:%M:%S')} {line}", highlight=False, soft_wrap=True, markup=False
                )

        run_device(Connection(server, key, ca, insecure, give_up), own, say=say, progress=display.progress)


def address(text: str, where: str) -> tuple[str, int]:
    """Read HOST:PORT; an IPv6 address is in brackets.

    Raises:
        ConfigError: if it is none.
    """
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not bare or not port.isdecimal() or int(port) > 65535 or (":" in bare and bare == host):
        raise ConfigError(
            f"cannot read {text!r}", where=where, hint=f"HOST:PORT, for example 192.168.0.10:{PORT}"
        )
    return bare, int(port)
