"""`methods`, `settings` and `doctor`: what there is, and what this machine has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from edgetune.cli.display import Display
from edgetune.cli.layout import fields, heading, paragraph
from edgetune.core.errors import ConfigError, nearest

EXTRAS = {
    "peft": ("peft", "LoRA"),
    "datasets": ("datasets", "parquet files and Hugging Face datasets"),
    "gguf": ("deploy", "writing GGUF files"),
    "xllamacpp": ("deploy", "running GGUF files in llama.cpp"),
    "matplotlib": ("plots", "the report's plots"),
    "flwr": ("flower", "devices on other hosts"),
    "tensorboardX": ("tensorboard", "curves for TensorBoard (--track)"),
    "triton": ("gpu", "direction kernels for CUDA tensors"),
}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
METHOD = "method."
"""Begins the keys whose default is the method's."""


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command()(methods)
    app.command()(doctor)
    app.command()(settings)


def methods(
    name: Annotated[
        str | None,
        typer.Argument(help="Show one method, or a .py file's, with its defaults.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the tuning and compression methods: what each does, what travels, its memory, its source."""
    from edgetune.methods.cards import cards, is_file

    rows: list[dict[str, Any]] = [asdict(card) for card in cards()]
    console = Console()
    if name is not None:
        if not is_file(name):
            rows = [row for row in rows if row["name"] == name] or _unknown(
                name, [row["name"] for row in rows]
            )
        with Display(console, quiet=as_json, doing="reading the method"):
            rows = [_card_of(name)] if is_file(name) else rows
            rows = [{**row, **_defaults_of(row["kind"], name)} for row in rows]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        heading(console, row["name"], f" ({row['kind']}): {row['summary']}")
        fields(console, ((key, row[key]) for key in ("travels", "memory", "source")))
        _print_defaults(console, row)


def _card_of(file: str) -> dict[str, Any]:
    """Return the card of a method in a file of the user's own."""
    from edgetune.methods.cards import Card
    from edgetune.methods.catalogue import tuning_method

    one = tuning_method(file)
    return asdict(Card(one.name, "tuning", one.summary, one.travels, one.memory, one.source))


def _defaults_of(kind: str, name: str) -> dict[str, Any]:
    """Return the settings a run with the method has, and what the embedded model's recipe sets otherwise."""
    from edgetune.compress.method import CompressionMethod
    from edgetune.methods import catalogue
    from edgetune.methods.options import defaults
    from edgetune.recipe.method_section import AUTO
    from edgetune.recipe.open_settings import OPEN, packaged_recipe
    from edgetune.recipe.recipe import load_recipe

    if kind == "compression":
        rule: CompressionMethod = catalogue.compression_method(name)
        own: dict[str, Any] = {"grid": rule.grid.name if rule.grid else "F16"}
        if rule.mask is not None:
            own |= {"sparsity": rule.mask.sparsity.name, "swaps": rule.swaps, "polish": rule.polish}
        return {"defaults": own, "packaged": {}}
    own, packaged = defaults(catalogue.tuning_method(name)), packaged_recipe(name)
    own |= {key: AUTO for key in OPEN if key in own}
    changed = load_recipe(packaged).method.model_dump(exclude_none=True) if packaged else {}
    return {
        "defaults": own,
        "packaged": {key: value for key, value in changed.items() if key in own and own[key] != value},
    }


def _print_defaults(console: Console, row: Mapping[str, Any]) -> None:
    change = "compression" if row["kind"] == "compression" else "method"
    for title, key in (
        (f"defaults (--set {change}.KEY=VALUE)", "defaults"),
        ("for the embedded model", "packaged"),
    ):
        if row.get(key):
            paragraph(console, f"{title}:", indent=4)
            fields(console, ((name, _plain(value)) for name, value in row[key].items()), indent=8)


def _plain(value: object) -> str:
    """Write a value as a recipe would."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unknown(name: str, known: list[str]) -> list[dict[str, Any]]:
    close = nearest(name, known)
    hint = f"did you mean {close!r}?" if close else f"known: {', '.join(known)}"
    raise ConfigError(f"no method called {name!r}", hint=hint)


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: kernel, libraries, extras, memory."""
    console = Console()
    with Display(console, quiet=as_json, doing="looking"):
        facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    fields(
        console,
        {
            "kernel": facts["kernel"],
            "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
            "CUDA": "yes" if facts["cuda"] else "no",
            "threads": str(facts["threads"]),
            "memory": f"{facts['memory_available_bytes'] / 2**30:.1f} of {facts['memory_bytes'] / 2**30:.1f} GiB free",
        }.items(),
        indent=0,
    )
    paragraph(console, "\nOptional libraries")
    fields(console, ((library, _state(library, found)) for library, found in facts["extras"].items()))


def _facts() -> dict[str, Any]:
    import psutil
    import torch

    from edgetune.directions.kernel import describe_kernel
    from edgetune.measure.versions import versions

    memory = psutil.virtual_memory()
    return {
        "kernel": describe_kernel(),
        "versions": versions(),
        "extras": {library: find_spec(library) is not None for library in EXTRAS},
        "cuda": torch.cuda.is_available(),
        "threads": torch.get_num_threads(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
    }


def _state(library: str, found: bool) -> Text:
    extra, purpose = EXTRAS[library]
    if found:
        return Text.assemble(("found", "green"), f", {purpose}")
    return Text.assemble(("missing", "yellow"), f", {purpose}: pip install 'edgetune[{extra}]'")


def settings() -> None:
    """List every recipe key with its default and meaning; `methods NAME` has one method's alone."""
    from edgetune.recipe.recipe import describe_settings

    console = Console()
    with Display(console, doing="reading the methods"):
        own = _defaults_by_key()
    section = ""
    for key, (default, meaning) in describe_settings().items():
        if key.rpartition(".")[0] != section:
            section = key.rpartition(".")[0]
            console.print()
        of_methods = own.get(key.removeprefix(METHOD), "") if key.startswith(METHOD) else ""
        shown = of_methods or "not set" if default is None else _plain(default)
        paragraph(console, Text.assemble((key, "bold"), " = ", (shown, "cyan")))
        paragraph(console, meaning, indent=4)


def _defaults_by_key() -> dict[str, str]:
    """Return what each method setting is by default: one value, or each with the methods that have it."""
    from edgetune.methods import catalogue
    from edgetune.methods.options import defaults

    having: dict[str, dict[str, list[str]]] = {}
    for name in catalogue.tuning_names():
        for key, value in defaults(catalogue.tuning_method(name)).items():
            having.setdefault(key, {}).setdefault(_plain(value), []).append(name)
    everywhere = len(catalogue.tuning_names())
    return {
        key: next(iter(values))
        if len(values) == 1 and len(next(iter(values.values()))) == everywhere
        else ", ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
        for key, values in having.items()
    }
