"""`stages`: what a run is made of."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.cli.layout import fields, heading, paragraph


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(stages)


def stages(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the stages of a run: what each takes and gives, and what it costs."""
    console = Console()
    with Display(console, quiet=as_json, doing="reading the stages"):
        from edgetune.run.pipeline import STAGES
        from edgetune.run.stages import stage_named, stage_names
    rows = [
        {
            "name": stage.name,
            "takes": stage.takes.__name__.lower(),
            "gives": stage.gives.__name__.lower(),
            "summary": stage.summary,
            "cost": stage.cost,
        }
        for stage in map(stage_named, stage_names())
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        heading(console, row["name"], f" ({row['takes']} to {row['gives']}): {row['summary']}")
        fields(console, [("cost", row["cost"])])
    paragraph(console, f"\nedgetune run does {', '.join(STAGES)}; a recipe names others: stages = [...]")
