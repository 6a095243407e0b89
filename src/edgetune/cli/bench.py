"""`bench`: ratios of two sides taken in turn in one run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from edgetune.bench.timing import Ratio


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(bench)


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="directions, step, embedded, rows, rank-one, catchup, federation, case-study, initialisers, "
            "compression, distillation, combinations, forwards or leakage."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all sides use the same number.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; cuda for directions, step and embedded.")] = "cpu",
    kernel: Annotated[
        str | None, typer.Option(help="In place of EDGETUNE_KERNEL, for example c-avx2.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A model of yours: for step in place of a random one of 90 M weights, for federation beside the "
            "embedded one, for case-study, initialisers, compression, combinations, forwards and leakage in its "
            "place."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="For tables: that model's records; for compression a text to measure on."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(help="For compression: a text to calibrate on; a fifth is held out without --data."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="For compression: to calibrate on.", min=1)] = 16_384,
    rivals: Annotated[
        Path | None, typer.Option(help="For compression: JSON of other tools' files (name, bytes, kl).")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="For federation, combinations, forwards and leakage a tuning method, for initialisers one of them, "
            "for compression a method or grid; else all."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="For tables: repeats.", min=1)] = 3,
    jobs: Annotated[int, typer.Option(help="For tables: runs side by side.", min=1)] = 1,
    work: Annotated[
        int,
        typer.Option(
            help="For federation, initialisers, combinations and forwards: forward passes of a record a device.",
            min=1,
        ),
    ] = 8000,
    rates: Annotated[
        int,
        typer.Option(help="For forwards: rates tried at most; 1 takes the range test's as it is.", min=1),
    ] = 8,
    out: Annotated[Path, typer.Option(help="For tables: folder of table and runs.")] = Path("out/federation"),
) -> None:
    """Measure ratios side by side in one run.

    Directions, a whole step, one of the embedded model, one along directions of rank one, up to how many rows a
    matrix is better perturbed in the cache, or a device's catch-up. `federation` is a table of all federated
    systems at equal device work, `case-study` the survey's section III.D, `initialisers` one of LoRA's starts
    beside tuning all weights, `compression` one of methods, grids and calibrations, `distillation` one of lessons
    of a teacher, `combinations` one of tuning methods by compressions, `forwards` one of tuning methods at equal
    forward passes, each at the best of its rates, `leakage` one of what single uploads tell of their records; all go
    on where they were interrupted.
    """
    if what == "compression":
        from edgetune.cli.compression_table import compression_table

        return compression_table(
            model or "embedded", calibration, data, only or [], seeds, tokens, rivals, out, jobs
        )
    if what == "distillation":
        from edgetune.cli.distillation_table import distillation_table

        return distillation_table(seeds, out, jobs)
    if what == "combinations":
        from edgetune.cli.combinations_table import combinations_table

        return combinations_table(model or "embedded", data, only or [], seeds, out, jobs, work)
    if what == "forwards":
        from edgetune.cli.forwards_table import forwards_table

        return forwards_table(model, data, only or [], seeds, out, jobs, work, rates)
    if what == "leakage":
        from edgetune.cli.leakage_table import leakage_table

        return leakage_table(model, data, only or [], seeds, out, jobs)
    if what in TABLES:
        return _table(what, model, data, only or [], seeds, out, jobs, work)
    with Display(Console(), quiet=as_json):  # for the import only: what moves would disturb what is timed
        import torch

    _check(what, device, model)
    if threads is not None:
        torch.set_num_threads(threads)
    suite = SUITES[what] if device == "cpu" else partial(ON_GPUS[what], device=device)
    with _environment(kernel):
        _report(suite() if model is None else _step(model, device), as_json, rows=what == "rows")


def _table(
    what: str,
    model: str | None,
    data: str | None,
    only: list[str],
    seeds: int,
    out: Path,
    jobs: int,
    work: int,
) -> None:
    """Run one of the tables, which go on where they were interrupted."""
    from edgetune.cli import tables

    if what == "federation":
        tables.federation_table([model] if model else [], data, only, seeds, out, jobs, work)
    elif what == "case-study":
        tables.case_study_table(model or "embedded", data, seeds, out, jobs)
    else:
        tables.initialisers_table(model or "embedded", data, only, seeds, out, jobs, work)


def _check(what: str, device: str, model: str | None) -> None:
    """Refuse a benchmark that there is not, or not of this device or model.

    Raises:
        ConfigError: naming the option.
    """
    import torch

    if what not in SUITES:
        known = [*SUITES, *TABLES]
        close = nearest(what, known)
        hint = f"did you mean {close!r}?" if close else f"one of {', '.join(known)}"
        raise ConfigError(f"no benchmark {what!r}", hint=hint)
    if device not in DEVICES:
        raise ConfigError(f"no device {device!r}", where="--device", hint=f"one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device", where="--device", hint="--device cpu")
    if device != "cpu" and what not in ON_GPUS:
        raise ConfigError(f"the benchmark {what!r} runs on the CPU", where="--device", hint="--device cpu")
    if model is not None and what != "step":
        raise ConfigError(
            f"the benchmark {what!r} takes no model", where="--model", hint="edgetune bench step"
        )


@contextmanager
def _environment(kernel: str | None) -> Iterator[None]:
    """While entered, the environment asks for this kernel."""
    from edgetune.directions.kernel import VARIABLE

    before = os.environ.get(VARIABLE)
    if kernel is not None:
        os.environ[VARIABLE] = kernel
    try:
        yield
    finally:
        if before is not None:
            os.environ[VARIABLE] = before
        elif kernel is not None:
            del os.environ[VARIABLE]


def _report(measured: Iterator[Ratio], as_json: bool, *, rows: bool) -> None:
    """Print the ratios as they come, or all as JSON; each says which kernel and which of torch's made it."""
    import torch

    from edgetune.bench.rows import COUNTS, break_even
    from edgetune.directions.few import VARIABLE
    from edgetune.directions.kernel import describe_kernel

    console, found = Console(highlight=False, soft_wrap=True), []
    made = {
        "kernel": describe_kernel(),
        "torch": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if not as_json:
        console.print(
            f"kernel {made['kernel']}; torch {made['torch']}; {made['threads']} threads;"
            " median \\[quartiles] of the ratio"
        )
    for row in measured:
        found.append(row)
        if not as_json:
            note = f"  ({row.note})" if row.note else ""
            console.print(
                f"{row.what:<64} {row.ratio:>10,.3f} \\[{row.low:,.3f}, {row.high:,.3f}]"
                f"  {1e3 * row.seconds:,.1f} ms against {1e3 * row.other_seconds:,.1f} ms{note}"
            )
    most = {"rows": break_even(COUNTS, found)} if rows else {}
    if as_json:
        typer.echo(json.dumps({**made, **most, "ratios": [row.to_json() | made for row in found]}, indent=1))
    elif rows:
        console.print(
            f"the cache is the faster way up to {most['rows']} rows here: {VARIABLE}={most['rows']}"
        )


def _directions(device: str = "cpu") -> Iterator[Ratio]:
    from edgetune.bench.directions import bench_directions

    return bench_directions(device=device)


def _step(source: str | None = None, device: str = "cpu") -> Iterator[Ratio]:
    from edgetune.bench.step import bench_step, usual_llama
    from edgetune.models.backbone import load_backbone

    return bench_step(usual_llama() if source is None else load_backbone(source).model, device=device)


def _embedded(device: str = "cpu") -> Iterator[Ratio]:
    from edgetune.bench.embedded import bench_embedded

    return bench_embedded(device=device)


def _rows() -> Iterator[Ratio]:
    from edgetune.bench.rows import bench_rows

    return bench_rows()


def _moved() -> Iterator[Ratio]:
    from edgetune.bench.moved import bench_moved
    from edgetune.bench.step import usual_llama

    return bench_moved(usual_llama())


def _catchup() -> Iterator[Ratio]:
    from edgetune.bench.catchup import bench_catchup

    return bench_catchup()


DEVICES = ("cpu", "cuda")
TABLES = (
    "federation",
    "case-study",
    "initialisers",
    "compression",
    "distillation",
    "combinations",
    "forwards",
    "leakage",
)
SUITES: dict[str, Callable[[], Iterator[Ratio]]] = {
    "directions": _directions,
    "step": _step,
    "embedded": _embedded,
    "rows": _rows,
    "rank-one": _moved,
    "catchup": _catchup,
}
ON_GPUS: dict[str, Callable[..., Iterator[Ratio]]] = {
    "directions": _directions,
    "step": _step,
    "embedded": _embedded,
}
