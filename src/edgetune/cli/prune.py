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
Ratio = Annotated[float, typer.Option(help="Share of the weights of heads and channels to remove, 0 to 1.")]
ImportanceName = Annotated[
    str,
    typer.Option("--importance", help="activation, first, vector, second, mixed, magnitude or random."),
]
Width = Annotated[
    str, typer.Option(help="uniform (loads everywhere), per_layer, or modules (whole ones go).")
]
Calibration = Annotated[Path | None, typer.Option(help="File with calibration text; --data if not given.")]
Compensate = Annotated[bool, typer.Option(help="Restore what reads the rest, by least squares.")]
Recover = Annotated[str, typer.Option(help="none, distil (all weights) or lora, towards the dense model.")]
Steps = Annotated[int, typer.Option(min=1, help="Batches of 16 records of the recovery.")]
Rate = Annotated[
    float | None, typer.Option("--learning-rate", "--lr", help="Of the recovery; its own if not set.")
]
Spare = Annotated[
    tuple[int, int], typer.Option(help="First and last layers that --width per_layer leaves alone.")
]
Folder = Annotated[
    Path,
    typer.Option("--out", "-o", parser=folder, metavar="FOLDER", help="The model folder to write."),
]


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(prune)


@asking("device", "data", "test_data", "columns", "metric", "seed", "threads", file=False)
def prune(
    model: Base,
    asked: Asked,
    ratio: Ratio = 0.2,
    importance: ImportanceName = "activation",
    width: Width = "uniform",
    calibration: Calibration = None,
    compensate: Compensate = True,
    recover: Recover = "none",
    steps: Steps = 200,
    rate: Rate = None,
    spare: Spare = (0, 0),
    out: Folder = Path("pruned"),
) -> None:
    """Prune a model in structures: a smaller ordinary model comes out, to be tuned, compressed and exported."""
    console = Console()
    with owned_folder(out), Display(console) as display:
        from edgetune.models.saving import save_model, stored_dtype
        from edgetune.recipe.prepare import prepare
        from edgetune.run.pruning import Order, Step, prune_prepared, settled_as_stored

        order = Order(ratio, importance, width, compensate, calibration, recover, spare, steps, rate)
        order.check()
        together = {"federation__devices": 1, "federation__participation": 1.0}
        prepared = prepare(asked.resolve(model__source=model, **together))
        table, found = _table(prepared.scoring.name if prepared.scoring else None), list[Step]()
        pruned = prune_prepared(prepared, order, display.progress, found.append)
        backbone = prepared.backbone
        settled_as_stored(pruned, stored_dtype(backbone.folder))
        save_model(pruned, backbone.tokenizer, out, words=backbone.folder)
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
