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
PTE = ("pte", "pte-exact")
FOLDERS = (USUAL, "gptq", ONNX, *PTE)
"""Names of `export.folders.FOLDER_FORMATS`, the graph of `run.onnx_folder` and the programs of `run.pte_folder`."""


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


def refuse_context(context: int | None, kind: str | None) -> None:
    """Refuse a length of a cache for what has none of its own.

    Raises:
        ConfigError: naming the formats that have.
    """
    if context is not None and kind not in PTE:
        what = "only a program for ExecuTorch has a cache of its own"
        raise ConfigError(what, where="--context", hint=f"--format {PTE[0]}")


def compress_folder(
    kind: str, opening: Callable[[], Opened], out: Path, context: int | None = None
) -> tuple[Divergence, int]:
    """Compress a model into a folder, say what was verified, and return how far it is from before, on how many records.

    Args:
        kind: of `FOLDERS`.
        opening: prepares the model.
        out: the folder.
        context: tokens that the cache of a program holds.
    """
    with without_trace(out), Display(Console()) as display:
        from edgetune.cli.folder_cards import card_of_packed
        from edgetune.models.saving import refuse_other_weights
        from edgetune.recipe.quality import reference_of
        from edgetune.run.deploy import solved_in

        refuse_other_weights(out)
        _refuse_without_libraries(kind)
        opened = opening()
        prepared: Any = opened.prepared
        if out.resolve() == prepared.backbone.folder.resolve():
            raise OutputError("this is the folder of the base itself", where=out, hint="choose another --out")
        compress = _planned(kind, prepared, out, context)
        tuned = opened.model()
        before = reference_of(tuned, prepared)
        with solved_in(out.parent / f"{out.name}.blocks") as scratch:
            checked = compress(tuned, display.listen, scratch)
        far = before.of(tuned)
        tried, facts = _tried(kind, checked), _facts(kind, out, checked)
        card_of_packed(out, kind, prepared, checked.size_bytes, far, facts)
    typer.echo(
        f"{out}: {kind}, {checked.size_bytes:,} bytes of weights, {checked.matrices} matrices read back bit for bit, "
        f"{tried}"
    )
    return far, len(prepared.held_out)


def _refuse_without_libraries(kind: str) -> None:
    """Refuse before the model is opened what its runtime would be missing for.

    Raises:
        MissingExtraError: naming the extra.
    """
    if kind == ONNX:
        from edgetune.export.onnx_graph import refuse_without_onnx

        refuse_without_onnx()
    elif kind in PTE:
        from edgetune.export.pte_program import refuse_without_executorch

        refuse_without_executorch()


def _planned(kind: str, prepared: Any, out: Path, context: int | None) -> Callable[..., Any]:
    """Refuse what the end would refuse; return what compresses a model, given it, a listener and a scratch folder."""
    from edgetune.recipe.preflight import compression_of

    method, grid = compression_of(prepared.recipe), prepared.recipe.compression.grid is not None
    if kind == ONNX:
        from edgetune.run.onnx_folder import compress_to_onnx, plan_onnx

        plan_onnx(prepared, method, out)
        return lambda tuned, listen, scratch: compress_to_onnx(tuned, method, out, prepared, listen, scratch)
    if kind in PTE:
        from edgetune.run.pte_folder import compress_to_pte, plan_pte

        program = plan_pte(kind, prepared, method, out, grid=grid, context=context)
        return lambda tuned, listen, scratch: compress_to_pte(tuned, program, out, prepared, listen, scratch)
    from edgetune.run.folders import compress_to_folder, plan_folder

    plan = plan_folder(kind, prepared, method, grid=grid)
    return lambda tuned, listen, scratch: compress_to_folder(tuned, plan, out, prepared, listen, scratch)


def _tried(kind: str, checked: Any) -> str:
    """Say what a runtime made of the folder."""
    if checked.gap is None:
        return "not tried in a runtime"
    runtime = {ONNX: "ONNX Runtime", **dict.fromkeys(PTE, "ExecuTorch")}.get(kind, "transformers")
    rounding = checked.compared.rounding if kind in PTE else 0.0
    within = f"in {runtime} within {checked.gap:.1g} nats"
    return f"{within}; activations of 8 bits cost KL {rounding:.1e}" if rounding else within


def _facts(kind: str, out: Path, checked: Any) -> list[str]:
    """Return lines of the card about a program."""
    if kind not in PTE:
        return []
    from edgetune.installed.manifest import stored_file
    from edgetune.run.pte_folder import FILE

    digest = stored_file(out / FILE).sha256
    return [f"Program: `{FILE}`, SHA-256 `{digest}`, {_tried(kind, checked)}"]
