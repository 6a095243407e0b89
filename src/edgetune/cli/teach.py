"""`teach`: write what a teacher says of records, or its answers to them, for devices that cannot hold the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.cli.options import Asked, Quiet, asking
from edgetune.core.errors import ConfigError

Teacher = Annotated[str, typer.Argument(help="Model folder, GGUF file, Hub id, or 'embedded'.")]
Top = Annotated[int, typer.Option(min=1, help="Likeliest tokens that are kept at a position.")]
Answers = Annotated[
    bool,
    typer.Option(
        "--answers", help="Write its own answers instead, as records for students of any vocabulary."
    ),
]
FileOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        metavar="FILE",
        help="The file to write.",
        show_default="teacher.safetensors or answers.jsonl",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(teach)


@asking("model", "device", "data", "test_data", "columns", "held_out_category", "seed", "threads")
def teach(
    teacher: Teacher,
    asked: Asked,
    top: Top = 64,
    answers: Answers = False,
    out: FileOut = None,
    quiet: Quiet = False,
) -> None:
    """Write what a teacher says of the records, to be learnt from without it.

    Without --answers: how likely it finds the tokens of the records' responses (distillation.teacher_logits). With:
    records with its answers in place of theirs (--data), but for those that are held out.
    """
    if answers:
        _answer(teacher, asked, out or Path("answers.jsonl"), quiet)
    else:
        _say(teacher, asked, top, out or Path("teacher.safetensors"), quiet)


def _answer(teacher: str, asked: Asked, out: Path, quiet: bool) -> None:
    if asked.settings.get("model.source") is not None:
        raise ConfigError("answers are the same for every student", where="--model", hint="leave it out")
    if out.suffix != ".jsonl":
        raise ConfigError("answers are records, one a line", where="--out", hint="name a .jsonl file")
    with Display(Console(), quiet=quiet) as display:
        from edgetune.recipe.answering import answer_records
        from edgetune.recipe.prepare import prepare

        done = answer_records(
            prepare(asked.resolve(model__source=teacher), split=False), out, display.progress
        )
    typer.echo(
        f"{out}: {done.kept:,} answers of {teacher}; {done.cut:,} did not end, {done.empty:,} were empty, "
        f"{done.held_out:,} records are held out and were not asked, nor the server's sample"
    )


def _say(teacher: str, asked: Asked, top: int, out: Path, quiet: bool) -> None:
    with Display(Console(), quiet=quiet) as display:
        from edgetune.recipe.prepare import prepare
        from edgetune.recipe.teaching import teach as write

        alone = {"federation__devices": 1, "federation__participation": 1.0}
        told = {"distillation__teacher": teacher, "distillation__on_policy": 0.0}
        prepared = prepare(asked.resolve(**told, **alone))
        tokens = write(prepared, out, top=top, progress=display.progress)
    size = out.stat().st_size
    typer.echo(f"{out}: {tokens:,} tokens of {teacher}, {size:,} bytes ({size / tokens:.0f} a token)")
