"""`methods` and `doctor`: what there is, and what this machine has."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from edgetune.core.errors import ConfigError, nearest

EXTRAS = {
    "peft": ("peft", "LoRA"),
    "datasets": ("datasets", "parquet files and Hugging Face datasets"),
    "gguf": ("deploy", "writing GGUF files"),
    "xllamacpp": ("deploy", "running GGUF files in llama.cpp"),
    "matplotlib": ("plots", "the report's plots"),
    "triton": ("gpu", "direction kernels for CUDA tensors"),
}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(methods)
    app.command()(doctor)
    app.command()(settings)


def methods(
    name: Annotated[str | None, typer.Argument(help="Show one method only.")] = None, as_json: AsJson = False
) -> None:
    """List the tuning and compression methods: what each does, what travels, its memory, its source."""
    from edgetune.methods import catalogue

    rows = []
    for known in catalogue.tuning_names():
        method = catalogue.tuning_method(known)
        rows.append(
            {
                "name": method.name,
                "kind": "tuning",
                "summary": method.summary,
                "travels": method.travels,
                "memory": method.memory,
                "source": method.source,
            }
        )
    for known in catalogue.compression_names():
        rule = catalogue.compression_method(known)
        rows.append(
            {
                "name": rule.name,
                "kind": "compression",
                "summary": rule.summary,
                "travels": "nothing",
                "memory": "one decoder block's Hessians beside the model"
                if rule.compensate
                else "one matrix",
                "source": rule.source,
            }
        )
    if name is not None:
        chosen = [row for row in rows if row["name"] == name]
        if not chosen:
            raise _unknown(name, [row["name"] for row in rows])
        rows = chosen
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    for row in rows:
        console.print(f"[bold]{row['name']}[/] ({row['kind']}): {row['summary']}")
        for key in ("travels", "memory", "source"):
            console.print(f"    [dim]{key:<8}[/] {row[key]}")


def _unknown(name: str, known: list[str]) -> ConfigError:
    close = nearest(name, known)
    hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
    return ConfigError(f"no method called {name!r}", hint=hint)


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: kernel, libraries, extras, memory."""
    import psutil
    import torch

    from edgetune.directions.kernel import describe_kernel
    from edgetune.measure.versions import versions

    memory = psutil.virtual_memory()
    facts = {
        "kernel": describe_kernel(),
        "versions": versions(),
        "extras": {library: find_spec(library) is not None for library in EXTRAS},
        "cuda": torch.cuda.is_available(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    console = Console(highlight=False)
    console.print(f"direction kernel: {facts['kernel']}")
    console.print("versions: " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    for library, (extra, purpose) in EXTRAS.items():
        state = (
            "[green]found[/]"
            if find_spec(library)
            else f"[yellow]missing[/] - pip install 'edgetune\\[{extra}]'"
        )
        console.print(f"{library:<12} {purpose:<42} {state}")
    console.print(f"CUDA: {'yes' if facts['cuda'] else 'no'}; torch threads: {facts['threads']}")
    console.print(f"memory: {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free")


def settings() -> None:
    """List every recipe key with its default and meaning."""
    from edgetune.recipe.recipe import describe_settings

    table = Table("key", "default", "meaning")
    for key, (default, meaning) in describe_settings().items():
        table.add_row(key, "" if default is None else str(default), meaning)
    Console().print(table)
