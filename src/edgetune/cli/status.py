"""`status`: how a run stands, from its folder or from the server that is at work on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from edgetune.cli.layout import fields, grid
from edgetune.core.errors import INTERRUPTED, DataError, UnreachableError
from edgetune.core.reasons import counted_reasons, numbers, shortened
from edgetune.hosts import PORT

Now = Callable[[], dict[str, Any]]
Row = tuple[str, Text]
INTERVAL = 1.0
"""Seconds between two looks."""
AWAY = 60.0
"""Seconds that a server which answered before may be away: it may have been killed and started again."""
LAST = 5
"""Losses that are shown."""
STYLES = {"running": "green", "finished": "green", "failed": "bold red", "killed": "bold red"}


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(status)


def status(
    target: Annotated[
        str,
        typer.Argument(
            metavar="HOST|DIR", help="A server (HOST:PORT; 9092 if not said), or the folder of a run."
        ),
    ],
    certs: Annotated[
        Path | None,
        typer.Option(
            help="The folder of edgetune certs: its ca.pem says who the server is.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look each second, until the run ends or Ctrl-C.")
    ] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Ask without TLS: anyone in between can read along.")
    ] = False,
) -> None:
    """Say how a run stands: round, who is online, last losses, bytes.

    Exit codes: 2 wrong option or certificates; 3 no run there; 11 no server there, or not the one it should be.
    """
    console = Console()
    now = _asking(target, certs, insecure)
    if not watch:
        _print(console, now(), as_json)
        return
    try:
        if console.is_terminal and not as_json:
            _watch_live(console, _patient(now))
        else:
            _watch_lines(console, _patient(now), as_json)
    except KeyboardInterrupt as stop:
        if getattr(stop, "exit_code", INTERRUPTED) != INTERRUPTED:  # the system's signal, not Ctrl-C
            raise


def _asking(target: str, certs: Path | None, insecure: bool) -> Now:
    """Return what says how the run stands; a folder of that name goes before a host."""
    folder = Path(target)
    if certs is not None and ":" not in target:
        target = f"{target}:{PORT}"
    elif folder.is_dir():
        from edgetune.hosts.status import Statuses

        return Statuses(folder).now
    from edgetune.hosts.status_client import HOST_PORT, StatusClient, address_of

    if folder.exists() or not HOST_PORT.fullmatch(target.split("//")[-1].rstrip("/")):
        hint = "give the --out of a run, or HOST:PORT of a server"
        raise DataError("no such folder, and not the address of a server", where=target, hint=hint)
    return StatusClient(address_of(target), certs, insecure=insecure).now


def _patient(now: Now) -> Now:
    """Bridge the time that a server is away: say what it said last, until it comes back or stays away for too long."""
    last: dict[str, Any] | None = None
    seen = 0.0

    def ask() -> dict[str, Any]:
        nonlocal last, seen
        try:
            last, seen = now(), time.monotonic()
        except UnreachableError as error:
            if last is None or time.monotonic() - seen > AWAY:
                raise
            return {**last, "state": "away", "failure": error.what}
        return last

    return ask


def _over(found: dict[str, Any]) -> bool:
    """Return whether nothing will change: the run ended, or its server left after the last round."""
    ended = found["state"] == "away" and found["done"] == found["rounds"]
    return ended or found["state"] in {"finished", "failed"}


def _watch_live(console: Console, now: Now) -> None:
    from rich.live import Live

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            found = now()
            live.update(grid(console, rows_of(found)), refresh=True)
            if _over(found):
                return
            time.sleep(INTERVAL)


def _watch_lines(console: Console, now: Now, as_json: bool) -> None:
    """Print once a change: where nothing can be drawn over, nothing is said twice."""
    said = None
    while True:
        found = now()
        if found != said:
            _print(console, found, as_json, short=True)
            said = found
        if _over(found):
            return
        time.sleep(INTERVAL)


def _print(console: Console, found: dict[str, Any], as_json: bool, *, short: bool = False) -> None:
    if as_json:
        typer.echo(json.dumps(found, indent=None if short else 2))
    elif short:
        line = "; ".join(f"{label} {text.plain}" for label, text in rows_of(found))
        console.print(Text(line), soft_wrap=True, highlight=False)
    else:
        fields(console, rows_of(found), indent=0)


def rows_of(found: dict[str, Any]) -> list[Row]:
    """Return a status as labels and words; what is not known has no row.

    Args:
        found: as `hosts.status.Statuses.now` returns it, from here or another host.
    """
    rows = [
        ("run", Text(": ".join(shortened(found[key]) for key in ("method", "command") if found[key]))),
        ("state", _state(found)),
        ("round", Text(_round(found))),
        ("devices", Text(_devices(found))),
        ("asked", Text(_asked(found))),
        ("held-out loss", Text(_losses(found["losses"]))),
        ("train loss", Text(_losses(found["train_losses"]))),
        ("payload", Text(_bytes(found, "payload"))),
        ("socket", Text(_bytes(found, "transport"))),
        ("no reply", Text(counted_reasons(_reasons(found["unanswered"])))),
        ("late", Text(f"{found['late']:,} for earlier rounds, refused" if found["late"] else "")),
        ("turned away", Text(counted_reasons(_reasons(found["refused"])))),
    ]
    return [(label, text) for label, text in rows if text.plain]


def _reasons(counts: dict[str, int]) -> dict[str, int]:
    return {shortened(why): count for why, count in counts.items()}


def _state(found: dict[str, Any]) -> Text:
    state, pid, phase, when = found["state"], found["pid"], found["phase"], found["last_time"]
    said = {
        "running": "running" if phase is None else f"running, {phase} (process {pid})",
        "killed": f"killed: the server's process {pid} is gone; the same edgetune server command goes on",
        "failed": f"failed: {shortened(found['failure'] or '')}",
        "unfinished": "not finished: still going, or killed",
        "away": f"{shortened(found['failure'] or '')}; it said last:",
    }.get(state, state)
    text = Text(said, style=STYLES.get(state, "yellow"))
    return text if when is None else text.append(f"; last event {_clock(when)}", style="not bold default")


def _clock(when: float) -> str:
    moment = datetime.fromtimestamp(when)
    return moment.strftime("%H:%M:%S" if moment.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def _round(found: dict[str, Any]) -> str:
    many = "" if found["rounds"] is None else f" of {found['rounds']:,}"
    whole = "" if found["done"] == found["round"] else f"; {found['done']:,} whole"
    return f"{found['round'] or 0:,}{many}{whole}"


def _devices(found: dict[str, Any]) -> str:
    registered, online = found["registered"], found["online"]
    if online is None:
        return "" if registered is None else f"{registered:,} registered"
    return f"{len(online):,} online of {registered:,} registered{_named(online)}"


def _asked(found: dict[str, Any]) -> str:
    asked, heard = found["asked"], found["heard"]
    if not asked or found["state"] in {"finished", "failed"}:
        return ""
    waited = sorted(set(asked) - set(heard))
    waits = f", waiting for{_named(waited)[1:]}" if waited else ""
    return f"{len(asked):,}{_named(asked)}; {len(heard):,} answered{waits}"


def _named(devices: list[int]) -> str:
    return f": {numbers(sorted(devices))}" if devices else ""


def _losses(losses: list[list[float]]) -> str:
    shown = ", ".join(f"{int(number):,}: {loss:.4f}" for number, loss in losses[-LAST:])
    return f"round {shown}" if shown else ""


def _bytes(found: dict[str, Any], what: str) -> str:
    from edgetune.report.units import size

    up, down = found[f"{what}_up_bytes"], found[f"{what}_down_bytes"]
    payload = found["payload_up_bytes"] + found["payload_down_bytes"]
    if not up + down:
        return ""
    times = f", {(up + down) / payload:.2f} times the payload" if what == "transport" and payload else ""
    return f"{size(up)} up, {size(down)} down{times}"
