"""`suggest`: a learning rate and a perturbation radius for a model and its data."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from edgetune.cli.display import Display
from edgetune.cli.options import Asked, asking

if TYPE_CHECKING:
    from edgetune.suggest.quick import Quick
    from edgetune.suggest.range_test import Suggestion


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(suggest)


@asking("model", "device", "data", "test_data", "columns", "held_out_category", "seed", "threads")
def suggest(
    method: Annotated[
        str, typer.Argument(help="A forward-only method: mezo, fedkseed, zo_sgd, ..., or a .py file.")
    ],
    asked: Asked,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Only what a run does by itself; also for lora, momentum and scores."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find a learning rate and a perturbation radius for this model and data, in about 1,400 forward passes."""
    console = Console()
    with Display(console, quiet=as_json) as display:
        from edgetune.recipe.prepare import prepare
        from edgetune.suggest.preparing import find_prepared
        from edgetune.suggest.suggesting import suggest_prepared

        prepared = prepare(asked.resolve(method__name=method))
        served = prepared.method.holds or prepared.method.survey is not None
        if quick:
            cautious = find_prepared(prepared, single=not served, progress=display.progress)
        else:
            found = suggest_prepared(prepared, display.progress)
    if quick:
        command = _command(method, asked, cautious, "federate" if served else "tune")
        typer.echo(json.dumps({**asdict(cautious), "command": command}, indent=1) if as_json else command)
        return
    command = _command(method, asked, found)
    if as_json:
        typer.echo(json.dumps(_plain({**asdict(found), "command": command}), indent=1))
        return
    _print(console, found)
    typer.echo(command)


def _command(method: str, asked: Asked, found: Suggestion | Quick, verb: str = "tune") -> str:
    """Return the command that uses what was found, with everything else as it was asked for."""
    words = ["edgetune", verb, method, *([str(asked.recipe)] if asked.recipe else [])]
    words += [word for flag, value in asked.given for word in (flag, value)]
    kept = [
        text
        for text in asked.overrides
        if text.partition("=")[0].strip() not in {"method.eps", "method.learning_rate"}
    ]
    words += [word for text in kept for word in ("--set", text)]
    radius = [] if found.eps is None else ["--set", f"method.eps={found.eps:g}"]
    return shlex.join([*words, "--lr", f"{found.learning_rate:g}", *radius])


def _print(console: Console, found: Suggestion) -> None:
    radii = Table(
        "eps", "|L+ - L-|", "noise", "clear of it", "bend", "survives rounding", box=box.SIMPLE_HEAD
    )
    for row in found.radii:
        style = "bold" if math.isclose(row.eps, found.eps, rel_tol=0.1) else "" if row.usable else "dim"
        radii.add_row(
            f"{row.eps:.1e}", f"{row.difference:.1e}", f"{row.noise:.1e}", f"{100 * row.clear:.0f} %",
            f"{row.bend:.2g}", f"{100 * row.realised:.0f} %", style=style,
        )  # fmt: skip
    console.print(radii)
    slopes = found.slopes
    console.print(
        f"slopes: mean {slopes.mean:.3g}, deviation {math.sqrt(slopes.variance):.3g}, "
        f"{100 * slopes.shared:.0f} % of their square shared by batches; curvature {slopes.curvature:.3g}; "
        f"best single step at a rate of {found.single:.1e}; {found.steps:,} steps stay within {found.reach:.2g} of the "
        f"base up to a rate of {found.limit:.1e}",
        highlight=False,
    )
    trials = Table("learning rate", "training loss after the trial", box=box.SIMPLE_HEAD)
    trials.add_row("none", f"{found.start_loss:.4f}", style="dim")
    for trial in found.trials:
        mark = "bold" if trial.learning_rate == found.learning_rate else ""
        dropped = f" ({trial.dropped} steps dropped)" if trial.dropped else ""
        trials.add_row(f"{trial.learning_rate:g}", f"{trial.loss:.4f}{dropped}", style=mark)
    console.print(trials)
    if not found.clear:
        console.print(
            "[yellow]warning:[/] no radius lifts the loss 10 times above its rounding noise; a larger "
            "method.batch_size or --set model.dtype=float32 helps",
            highlight=False,
        )


def _plain(value: Any) -> Any:
    """Return the value with null for what JSON cannot say."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
