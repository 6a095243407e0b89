"""`split`: the shares of a recipe's devices as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgetune.cli.options import Asked, Quiet, asking, folder


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(split)


@asking(
    "model", "data", "test_data", "columns", "held_out_category", "method", "devices", "alpha", "seed"
)  # those that decide who holds what; the model and the method choose the packaged recipe
def split(
    out: Annotated[Path, typer.Argument(parser=folder, metavar="OUT", help="Folder for OUT/<device>.jsonl.")],
    asked: Asked,
    quiet: Quiet = False,
) -> None:
    """Write what each device of a recipe holds as a file, to try `device --data` with: real ones have their own."""
    from edgetune.hosts.shares import split_files

    shares, console = split_files(asked.resolve(), out), Console()
    if not quiet:
        for note in shares.notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)
    for path, records in zip(shares.files, shares.records, strict=True):
        console.print(f"{path}: {records:,} records", highlight=False, markup=False, soft_wrap=True)
