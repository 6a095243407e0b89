"""`run`, `tune` and `federate`: what takes a recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from edgetune.cli.display import Display
from edgetune.cli.options import Asked, Out, Quiet, Track, asking
from edgetune.core.errors import STOPPED

if TYPE_CHECKING:
    from edgetune.report.summary import Summary

WHERE = ("model", "device", "residency", "data", "test_data", "columns", "held_out_category")
FLEET = ("devices", "participation", "alpha")
HOW = ("rounds", "teacher", "learning_rate", "metric", "extract", "seed", "threads")


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(run)
    app.command()(tune)
    app.command()(federate)


@asking(*WHERE, "method", *FLEET, *HOW)
def run(asked: Asked, out: Out = Path("out"), track: Track = None, quiet: Quiet = False) -> None:
    """Tune across devices, compress, export, run in llama.cpp, and report."""
    console = Console()
    with Display(console, quiet=quiet) as display:
        from edgetune.core.event_log import read_events
        from edgetune.report.summary import summarise
        from edgetune.report.table import print_result
        from edgetune.report.trackers import tracking
        from edgetune.run import pipeline
        from edgetune.run.stage import File
        from edgetune.run.work import EVENTS

        recipe = asked.resolve()
        with reported(out), tracking(track or (), out / EVENTS, display.listen, display.warn) as told:
            result = pipeline.run(recipe, out, command=_command(), listener=told, progress=display.progress)
    summary = summarise(read_events(out / EVENTS))
    if not quiet:
        _print_answers(console, summary)
    print_result(console, summary)
    if isinstance(result, File):
        model = escape(str(result.path))
        console.print(f"\n{model} runs in llama.cpp: edgetune chat {model}")
    console.print(f"The whole story: {escape(str(out / 'report.html'))}")
    _leave(display)


@asking(*WHERE, *HOW)
def tune(
    method: Annotated[
        str, typer.Argument(help="mezo, zo_sgd, fedkseed, lora, ..., or a .py file of your own.")
    ],
    asked: Asked,
    out: Out = Path("out"),
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Tune on one device and write a ledger."""
    _tune(asked, out, track, quiet, single=True, method__name=method, federation__devices=1)


@asking(*WHERE, *FLEET, *HOW)
def federate(
    method: Annotated[str, typer.Argument(help="fedkseed, mezo, lora, ..., or a .py file of your own.")],
    asked: Asked,
    out: Out = Path("out"),
    track: Track = None,
    quiet: Quiet = False,
) -> None:
    """Tune across simulated devices in this process and write a ledger."""
    _tune(asked, out, track, quiet, single=False, method__name=method)


def _tune(
    asked: Asked, out: Path, track: list[str] | None, quiet: bool, *, single: bool, **settings: object
) -> None:
    console = Console()
    with Display(console, quiet=quiet) as display:
        from edgetune.core.events import Event
        from edgetune.core.export_events import ExportRefused
        from edgetune.core.ledger import read_ledger
        from edgetune.report.trackers import tracking
        from edgetune.run import pipeline
        from edgetune.run.work import EVENTS, LEDGER
        from edgetune.tune import merges

        recipe, heard = asked.resolve(**settings), list[type[Event]]()

        def listen(event: Event) -> None:
            heard.append(type(event))
            display.listen(event)

        with reported(out), tracking(track or (), out / EVENTS, listen, display.warn) as told:
            pipeline.run(
                recipe,
                out,
                command=_command(),
                stages=pipeline.TUNING,
                single=single,
                listener=told,
                progress=display.progress,
            )
    path = out / LEDGER
    ledger, size = read_ledger(path), path.stat().st_size
    said = f"{size:,} bytes, digest {ledger.digest[:12]}, round {ledger.round}"
    console.print(f"{escape(str(path))}: {said}", highlight=False, soft_wrap=True)
    if not quiet:
        command = _next(recipe.model.source, path, file=merges(ledger.adapter) and ExportRefused not in heard)
        console.print(f"next: {escape(command)}", highlight=False, soft_wrap=True)
    _leave(display)


def _next(model: str, ledger: Path, *, file: bool) -> str:
    """Return the command that makes something of a ledger: a file, or where none can be made, a measurement."""
    words = [model, "--ledger", str(ledger)]
    if not file:
        return shlex.join(["edgetune", "evaluate", *words])
    return shlex.join(["edgetune", "compress", *words, "--out", str(ledger.with_name("model.gguf"))])


def _leave(display: Display) -> None:
    """End with the exit code of a run that went back to its best round, if it did."""
    if display.stopped:
        raise typer.Exit(STOPPED)


@contextmanager
def reported(out: Path) -> Iterator[None]:
    """Write summary and report of whatever a run tells its log, also if it ends in an error; cards of models too.

    A run that is refused before it tells anything leaves the folder to whom it belongs.
    """
    from edgetune.cli.folder_cards import cards_of_run
    from edgetune.report.html import write_report
    from edgetune.report.summary import write_summary
    from edgetune.run.names import EVENTS

    log, before = out / EVENTS, _size(out / EVENTS)
    try:
        yield
    finally:
        if _size(log) != before:
            write_summary(out)
            write_report(out)
            cards_of_run(out)


def _size(path: Path) -> int:
    """Return a file's length, -1 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _print_answers(console: Console, summary: Summary) -> None:
    """Show what llama.cpp answered to a few held-out prompts, beside the untuned model and the expected answer."""
    before = {sample.prompt: sample.answer for sample in summary.samples if sample.stage == "base"}
    for sample in summary.samples:
        if sample.stage == "llama.cpp":
            console.print(f"\n[bold]{escape(_short(sample.prompt))}[/]", highlight=False)
            for who, text in (
                ("base", before.get(sample.prompt, "")),
                ("llama.cpp", sample.answer),
                ("expected", sample.expected),
            ):
                console.print(f"  [dim]{who:<10}[/] {escape(_short(text))}", highlight=False)


def _short(text: str, most: int = 240) -> str:
    """Return a text on one line, its middle left out if it is long; the report has all of it."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def _command() -> str:
    return shlex.join(["edgetune", *sys.argv[1:]])
