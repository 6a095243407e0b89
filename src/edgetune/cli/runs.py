"""`run`, `tune` and `federate`: what takes a recipe."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from edgetune.cli.display import Display
from edgetune.core.errors import OutputError

if TYPE_CHECKING:
    from edgetune.report.summary import Summary

Set = Annotated[
    list[str], typer.Option("--set", help="Override a recipe key: section.key=value. Repeatable.")
]
Model = Annotated[str | None, typer.Option(help="Model folder, Hub id, or 'embedded'.")]
Data = Annotated[str | None, typer.Option(help="jsonl or parquet file, datasets id, or 'embedded'.")]
HeldOut = Annotated[str | None, typer.Option(help="A category no device sees, used for evaluation.")]
Devices = Annotated[int | None, typer.Option(help="Number of devices.")]
Participation = Annotated[float | None, typer.Option(help="Share of the devices asked in a round, 0 to 1.")]
Alpha = Annotated[float | None, typer.Option(help="Dirichlet concentration of the split.")]
Rounds = Annotated[int | None, typer.Option(help="Number of rounds.")]
Rate = Annotated[float | None, typer.Option("--learning-rate", "--lr", help="Learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Master seed of every random choice.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]
Home = Annotated[
    str | None,
    typer.Option(help="Where weights live: fused, streamed, streamed-q8_0 or streamed-q4_0 (see settings)."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]


def folder(text: str) -> Path:
    """Read the name of a folder for results.

    Raises:
        OutputError: if it is empty; an empty name would be the present folder.
    """
    if not text.strip():
        raise OutputError("the name of the output folder is empty", where="--out", hint="name a folder")
    return Path(text)


Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        parser=folder,
        metavar="FOLDER",
        help="Folder for the results; an unfinished run there goes on.",
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        help="A recipe (.toml, .yaml); packaged settings for small models without it.", show_default=False
    ),
]


SMALL_MODEL_BYTES = 100_000_000


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(run)
    app.command()(tune)
    app.command()(federate)


def embedded_recipe(name: str = "demo") -> Path | None:
    """Return a packaged recipe for models of about a million weights, or None if there is none of that name."""
    path = Path(__file__).parent.parent / "recipes" / f"{name}.toml"
    return path if path.is_file() else None


def starting_recipe(recipe: Path | None, model: str | None, method: str | None) -> Path | None:
    """Return the recipe to start from: the given one, or the packaged one of the method for a small model.

    Learning rates of forward-only methods fall with the number of weights, so a model of more than 100 MB starts
    from the method's published defaults instead (None).
    """
    if recipe is not None:
        return recipe
    if model is not None:
        from edgetune.models.source import find_folder
        from edgetune.models.weights import weight_files

        if sum(file.stat().st_size for file in weight_files(find_folder(model))) > SMALL_MODEL_BYTES:
            return None
    return embedded_recipe(method or "demo")


def run(
    recipe: RecipeFile = None,
    out: Out = Path("out"),
    model: Model = None,
    data: Data = None,
    held_out_category: HeldOut = None,
    devices: Devices = None,
    participation: Participation = None,
    alpha: Alpha = None,
    rounds: Rounds = None,
    method: Annotated[str | None, typer.Option(help="Tuning method, see `edgetune methods`.")] = None,
    learning_rate: Rate = None,
    seed: Seed = None,
    threads: Threads = None,
    residency: Home = None,
    set: Set = [],  # noqa: B006 - typer wants a list
    quiet: Quiet = False,
) -> None:
    """Tune across devices, compress, export, run in llama.cpp, and report."""
    settings = {
        "model__source": model,
        "model__residency": residency,
        "data__source": data,
        "data__held_out_category": held_out_category,
        "federation__devices": devices,
        "federation__participation": participation,
        "federation__rounds": rounds,
        "split__alpha": alpha,
        "method__name": method,
        "method__learning_rate": learning_rate,
        "seed": seed,
        "threads": threads,
    }
    from edgetune.core.events import read_events
    from edgetune.report.summary import summarise
    from edgetune.report.table import print_result
    from edgetune.run import pipeline
    from edgetune.run.recipe import load_recipe

    resolved = load_recipe(starting_recipe(recipe, model, method), set, **settings)
    console = Console()
    with _reported(out), Display(console, quiet=quiet) as display:
        pipeline.run(resolved, out, command=_command(), listener=display.listen, progress=display.progress)
    summary = summarise(read_events(out / pipeline.EVENTS))
    if not quiet:
        _print_answers(console, summary)
    print_result(console, summary)
    model = escape(str(out / pipeline.MODEL))
    console.print(f"\n{model} runs in llama.cpp: edgetune chat {model}")
    console.print(f"The whole story: {escape(str(out / 'report.html'))}")


def tune(
    method: Annotated[str, typer.Argument(help="mezo, zo_sgd, fedkseed, lora, ...")],
    recipe: RecipeFile = None,
    out: Out = Path("out"),
    model: Model = None,
    data: Data = None,
    held_out_category: HeldOut = None,
    rounds: Annotated[
        int | None, typer.Option(help="Checkpoint intervals of method.local_steps steps.")
    ] = None,
    learning_rate: Rate = None,
    seed: Seed = None,
    threads: Threads = None,
    residency: Home = None,
    set: Set = [],  # noqa: B006 - typer wants a list
    quiet: Quiet = False,
) -> None:
    """Tune on one device and write a ledger."""
    _tune(
        recipe,
        out,
        set,
        quiet,
        single=True,
        method__name=method,
        model__source=model,
        model__residency=residency,
        data__source=data,
        data__held_out_category=held_out_category,
        federation__rounds=rounds,
        federation__devices=1,
        method__learning_rate=learning_rate,
        seed=seed,
        threads=threads,
    )


def federate(
    method: Annotated[str, typer.Argument(help="fedkseed, mezo, lora, ...")],
    recipe: RecipeFile = None,
    out: Out = Path("out"),
    model: Model = None,
    data: Data = None,
    held_out_category: HeldOut = None,
    devices: Devices = None,
    participation: Participation = None,
    alpha: Alpha = None,
    rounds: Rounds = None,
    learning_rate: Rate = None,
    seed: Seed = None,
    threads: Threads = None,
    residency: Home = None,
    set: Set = [],  # noqa: B006 - typer wants a list
    quiet: Quiet = False,
) -> None:
    """Tune across simulated devices in this process and write a ledger."""
    _tune(
        recipe,
        out,
        set,
        quiet,
        single=False,
        method__name=method,
        model__source=model,
        model__residency=residency,
        data__source=data,
        data__held_out_category=held_out_category,
        federation__devices=devices,
        federation__participation=participation,
        federation__rounds=rounds,
        split__alpha=alpha,
        method__learning_rate=learning_rate,
        seed=seed,
        threads=threads,
    )


def _tune(
    recipe: Path | None, out: Path, overrides: list[str], quiet: bool, *, single: bool, **settings: Any
) -> None:
    from edgetune.run import pipeline
    from edgetune.run.recipe import load_recipe

    start = starting_recipe(recipe, settings["model__source"], settings["method__name"])
    resolved = load_recipe(start, overrides, **settings)
    console = Console()
    with _reported(out), Display(console, quiet=quiet) as display:
        ledger = pipeline.tune_only(
            resolved,
            out,
            command=_command(),
            single=single,
            listener=display.listen,
            progress=display.progress,
        )
    size = (out / pipeline.LEDGER).stat().st_size
    said = f"{size:,} bytes, digest {ledger.digest[:12]}, round {ledger.round}"
    console.print(f"{escape(str(out / pipeline.LEDGER))}: {said}")


@contextmanager
def _reported(out: Path) -> Iterator[None]:
    """Write summary and report of whatever a run tells its log, also if it ends in an error.

    A run that is refused before it tells anything leaves the folder to whom it belongs.
    """
    from edgetune.report.html import write_report
    from edgetune.report.summary import write_summary
    from edgetune.run import pipeline

    log, before = out / pipeline.EVENTS, _size(out / pipeline.EVENTS)
    try:
        yield
    finally:
        if _size(log) != before:
            write_summary(out)
            write_report(out)


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
