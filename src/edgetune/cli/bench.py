"""`bench`: ratios of two sides taken in turn in one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgetune.core.errors import ConfigError, nearest

if TYPE_CHECKING:
    from edgetune.bench.timing import Ratio


def register(app: typer.Typer) -> None:
    """Add the command of this file."""
    app.command()(bench)


def bench(
    what: Annotated[str, typer.Argument(help="directions, step or catchup.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all sides use the same number.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; cuda for directions only.")] = "cpu",
) -> None:
    """Measure ratios side by side in one run: directions, a whole step, or a device's catch-up."""
    import torch

    from edgetune.directions.kernel import describe_kernel

    if what not in SUITES:
        close = nearest(what, SUITES)
        hint = f"did you mean {close!r}?" if close else f"one of {', '.join(SUITES)}"
        raise ConfigError(f"no benchmark {what!r}", hint=hint)
    if device not in DEVICES:
        raise ConfigError(f"no device {device!r}", where="--device", hint=f"one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch sees no CUDA device", where="--device", hint="--device cpu")
    if device != "cpu" and what != "directions":
        raise ConfigError(f"the benchmark {what!r} runs on the CPU", where="--device", hint="--device cpu")
    if threads is not None:
        torch.set_num_threads(threads)
    console = Console(highlight=False, soft_wrap=True)
    rows = []
    if not as_json:
        console.print(
            f"kernel {describe_kernel()}, {torch.get_num_threads()} threads; median [quartiles] of the ratio"
        )
    for row in SUITES[what]() if device == "cpu" else _directions(device):
        rows.append(row.to_json())
        if not as_json:
            note = f"  ({row.note})" if row.note else ""
            console.print(
                f"{row.what:<64} {row.ratio:>10,.3f} \\[{row.low:,.3f}, {row.high:,.3f}]"
                f"  {1e3 * row.seconds:,.1f} ms against {1e3 * row.other_seconds:,.1f} ms{note}"
            )
    if as_json:
        kernel = {"kernel": describe_kernel(), "threads": torch.get_num_threads()}
        typer.echo(json.dumps({**kernel, "ratios": rows}, indent=1))


def _directions(device: str = "cpu") -> Iterator[Ratio]:
    from edgetune.bench.directions import bench_directions

    return bench_directions(device=device)


def _step() -> Iterator[Ratio]:
    from edgetune.bench.step import bench_step

    return bench_step()


def _catchup() -> Iterator[Ratio]:
    from edgetune.bench.catchup import bench_catchup

    return bench_catchup()


DEVICES = ("cpu", "cuda")
SUITES: dict[str, Callable[[], Iterator[Ratio]]] = {
    "directions": _directions,
    "step": _step,
    "catchup": _catchup,
}
