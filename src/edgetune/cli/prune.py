"""`prune`: take whole channels, heads or sub-modules out of a model, and write what is left as a model folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from edgetune.cli.display import Display
from edgetune.cli.options import Asked, asking, folder
from edgetune.core.files import owned_folder

if TYPE_CHECKING:
    from edgetune.run.pruning import Step

Base = Annotated[str, typer.Argument(help="Model folder, GGUF file, Hub id, or 'embedded'.")]
Ratio = Annotated[
    float | None,
    typer.Option(help="Share of the weights of heads and channels to remove, 0 to 1.", show_default="0.2"),
]
ImportanceName = Annotated[
    str | None,
    typer.Option(
        "--importance",
        help="activation, first, vector, second, mixed, magnitude or random.",
        show_default="activation",
    ),
]
Width = Annotated[
    str | None,
    typer.Option(
        help="uniform (loads everywhere), per_layer, or modules (whole ones go).", show_default="uniform"
    ),
]
Compensate = Annotated[
    bool | None,
    typer.Option(
        "--compensate/--no-compensate",
        help="Restore what reads the rest, by least squares.",
        show_default="compensate",
    ),
]
Recover = Annotated[
    str | None,
    typer.Option(help="none, distil (all weights) or lora, towards the dense model.", show_default="none"),
]
Steps = Annotated[int | None, typer.Option(help="Batches of 16 records of the recovery.", show_default="200")]
Rate = Annotated[
    float | None, typer.Option("--learning-rate", "--lr", help="Of the recovery; its own if not set.")
]
Spare = Annotated[
    tuple[int, int] | None,
    typer.Option(help="First and last layers that --width per_layer leaves alone.", show_default="0 0"),
]
Folder = Annotated[
    Path,
    typer.Option("--out", "-o", parser=folder, metavar="FOLDER", help="The model folder to write."),
]


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(prune)


@asking(
    "device", "calibration", "calibration_tokens", "data", "test_data", "columns", "metric", "seed", "threads",
    file=False,
)  # fmt: skip
def prune(
    model: Base,
    asked: Asked,
    ratio: Ratio = None,
    importance: ImportanceName = None,
    width: Width = None,
    compensate: Compensate = None,
    recover: Recover = None,
    steps: Steps = None,
    rate: Rate = None,
    spare: Spare = None,
    out: Folder = Path("pruned"),
) -> None:
    """Prune a model in structures: a smaller ordinary model comes out, to be tuned, compressed and exported."""
    console = Console()
    with owned_folder(out), Display(console) as display:
        from edgetune.cli.folder_cards import card_of_pruned
        from edgetune.models.saving import save_model, stored_dtype
        from edgetune.recipe.prepare import prepare
        from edgetune.run.pruning import (
            Weighing,
            check_pruning,
            prune_prepared,
            settled_as_stored,
            shape_of_pruned,
        )

        recipe = asked.resolve(
            model__source=model,
            pruning__ratio=ratio,
            pruning__importance=importance,
            pruning__width=width,
            pruning__compensate=compensate,
            pruning__recover=recover,
            pruning__steps=steps,
            pruning__learning_rate=rate,
            pruning__spare=spare,
        )
        check_pruning(recipe.pruning)
        prepared = prepare(recipe, split=False)
        backbone = prepared.backbone
        shape_of_pruned(backbone.model, recipe.pruning)
        weighing = Weighing(prepared, backbone.model, display.progress, answers=True)
        pruned = prune_prepared(
            prepared, backbone.model, listener=display.listen, progress=display.progress, weigh=weighing
        )
        settled_as_stored(pruned, stored_dtype(backbone.folder))
        save_model(pruned, backbone.tokenizer, out, words=backbone.folder)
        card_of_pruned(out, prepared, weighing.steps)
    found, table = weighing.steps, _table(prepared.scoring.name if prepared.scoring else None)
    for step in found:
        _add(table, step)
    console.print(table)
    before, after = found[0].weights, found[-1].weights
    typer.echo(f"{out}: {after:,} of {before:,} weights ({1 - after / before:.1%} removed)")


def _table(metric: str | None) -> Table:
    score = [metric] if metric else []
    return Table(
        "step", "weights", "loss", "perplexity", "Rouge-L F1", *score, "KL to dense", box=box.SIMPLE_HEAD
    )


def _add(table: Table, step: Step) -> None:
    rouge = "-" if math.isnan(step.rouge_l) else f"{step.rouge_l:.2f}"
    score = [] if step.score is None else [f"{step.score:.2f}"]
    table.add_row(
        step.name, f"{step.weights:,}", f"{step.loss:.4f}", f"{step.perplexity:.4f}", rouge, *score,
        f"{step.divergence:.4f}",
    )  # fmt: skip
