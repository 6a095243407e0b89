"""`teach`: write what a teacher says of records, for devices that cannot hold the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.cli.options import Asked, Quiet, asking

Teacher = Annotated[str, typer.Argument(help="Model folder, GGUF file, Hub id, or 'embedded'.")]
Top = Annotated[int, typer.Option(min=1, help="Likeliest tokens that are kept at a position.")]
FileOut = Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The file to write.")]


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(teach)


@asking("model", "device", "data", "test_data", "columns", "held_out_category", "seed", "threads")
def teach(
    teacher: Teacher,
    asked: Asked,
    top: Top = 64,
    out: FileOut = Path("teacher.safetensors"),
    quiet: Quiet = False,
) -> None:
    """Write what a teacher says of the records, to be learnt from without it (distillation.teacher_logits)."""
    with Display(Console(), quiet=quiet) as display:
        from edgetune.recipe.prepare import prepare
        from edgetune.recipe.teaching import teach as write

        alone = {"federation__devices": 1, "federation__participation": 1.0}
        told = {"distillation__teacher": teacher, "distillation__on_policy": 0.0}
        prepared = prepare(asked.resolve(**told, **alone))
        tokens = write(prepared, out, top=top, progress=display.progress)
    size = out.stat().st_size
    typer.echo(f"{out}: {tokens:,} tokens of {teacher}, {size:,} bytes ({size / tokens:.0f} a token)")
