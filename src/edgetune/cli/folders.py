"""`compress --format`: the part of the command that writes a model folder with packed layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.core.errors import ConfigError, OutputError
from edgetune.core.files import without_trace

if TYPE_CHECKING:
    from edgetune.cli.artefacts import Opened
    from edgetune.measure.divergence import Divergence

GGUF, USUAL, ONNX = "gguf", "compressed-tensors", "onnx"
FOLDERS = (USUAL, "gptq", ONNX)
"""Names of `export.folders.FOLDER_FORMATS`, and the graph of `run.onnx_folder`."""


def folder_kind(form: str | None, grid: object) -> str | None:
    """Return the format of the folder that is asked for; None for a GGUF file.

    Args:
        form: what `--format` says; if nothing, a grid of integers says compressed-tensors.
        grid: what `--grid` says.

    Raises:
        ConfigError: if there is no such format.
    """
    name = form.lower() if form else None
    if name not in (None, GGUF, *FOLDERS):
        raise ConfigError(
            f"no format {form!r}", where="--format", hint=f"one of {', '.join((GGUF, *FOLDERS))}"
        )
    if name is None:
        return USUAL if isinstance(grid, str) and grid.startswith(("int", "uint")) else None
    return None if name == GGUF else name


def compress_folder(kind: str, opening: Callable[[], Opened], out: Path) -> tuple[Divergence, int]:
    """Compress a model into a folder, say what was verified, and return how far it is from before, on how many records.

    Args:
        kind: of `FOLDERS`.
        opening: prepares the model.
        out: the folder.
    """
    with without_trace(out), Display(Console()) as display:
        from edgetune.cli.folder_cards import card_of_packed
        from edgetune.models.saving import refuse_other_weights
        from edgetune.recipe.preflight import compression_of
        from edgetune.recipe.quality import reference_of
        from edgetune.run.deploy import solved_in
        from edgetune.run.folders import compress_to_folder, plan_folder
        from edgetune.run.onnx_folder import compress_to_onnx, plan_onnx

        refuse_other_weights(out)
        opened = opening()
        prepared: Any = opened.prepared
        if out.resolve() == prepared.backbone.folder.resolve():
            raise OutputError("this is the folder of the base itself", where=out, hint="choose another --out")
        said = prepared.recipe.compression
        method = compression_of(prepared.recipe)
        plan = None if kind == ONNX else plan_folder(kind, prepared, method, grid=said.grid is not None)
        if plan is None:
            plan_onnx(prepared, method, out)
        tuned = opened.model()
        before = reference_of(tuned, prepared)
        with solved_in(out.parent / f"{out.name}.blocks") as scratch:
            checked = (
                compress_to_onnx(tuned, method, out, prepared, display.listen, scratch)
                if plan is None
                else compress_to_folder(tuned, plan, out, prepared, display.listen, scratch)
            )
        far = before.of(tuned)
        card_of_packed(out, kind, prepared, checked.size_bytes, far)
    tried = (
        "not tried in a runtime"
        if checked.gap is None
        else f"in {'transformers' if plan else 'ONNX Runtime'} within {checked.gap:.1g} nats"
    )
    typer.echo(
        f"{out}: {kind}, {checked.size_bytes:,} bytes of weights, {checked.matrices} matrices read back bit for bit, "
        f"{tried}"
    )
    return far, len(prepared.held_out)
