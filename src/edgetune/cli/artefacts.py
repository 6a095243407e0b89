"""`compress`, `export`, `evaluate` and `report`: what takes a model, a file or a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.cli.folders import compress_folder, folder_kind, refuse_context
from edgetune.cli.options import Asked, asking
from edgetune.core.errors import DigestError, OutputError
from edgetune.core.files import remove_partial, without_trace, writable_folder
from edgetune.report import units

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgetune.core.export_events import Verified
    from edgetune.core.ledger import Ledger
    from edgetune.measure.divergence import Divergence
    from edgetune.recipe.prepare import Prepared

Base = Annotated[str, typer.Argument(help="Model folder, GGUF file, Hub id, or 'embedded'.")]
LedgerFile = Annotated[Path | None, typer.Option("--ledger", "-l", help="A fine-tune of this base.")]
File = Annotated[Path, typer.Option("--out", "-o", help="The GGUF file to write.")]
Target = Annotated[Path, typer.Option("--out", "-o", help="The GGUF file, or the folder, to write.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (compress, export, imatrix, evaluate, report):
        app.command()(command)


@asking(
    "device", "compression", "grid", "size", "sparsity", "calibration", "calibration_tokens", "data", "test_data",
    "columns", "threads", file=False,
)  # fmt: skip
def compress(
    model: Base,
    asked: Asked,
    ledger: LedgerFile = None,
    out: Target = Path("model.gguf"),
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="gguf, or a folder of compressed-tensors, gptq, onnx, pte or pte-exact; int4-g128 and its like are "
            "grids of these.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help="Tokens that the cache of a .pte holds; else what the data need, at least 512."),
    ] = None,
) -> None:
    """Compress a (tuned) model in one shot, write it as GGUF and verify it in llama.cpp; with --format as a folder."""
    kind = folder_kind(form, asked.settings["compression.grid"])
    refuse_context(context, kind)
    if kind is not None:
        folder = out.with_suffix("") if out == Path("model.gguf") else out
        _say_far(*compress_folder(kind, lambda: _open(model, ledger, asked), folder, context))
        return
    with _target(out), Display(Console()) as display:
        from edgetune.export.checked import deploy
        from edgetune.recipe.allotting import allot
        from edgetune.recipe.preflight import compression_of, plan_for, preflight
        from edgetune.recipe.quality import reference_of
        from edgetune.run.deploy import compress_to_file, solved_in, verify_file

        opened = _open(model, ledger, asked)
        prepared, chosen = opened.prepared, compression_of(opened.prepared.recipe)
        plan, planned = preflight(prepared, out, chosen)
        display.listen(planned)
        tuned = opened.model()
        before = reference_of(tuned, prepared)
        allotted = allot(tuned, chosen, prepared, plan, display.progress)
        if allotted.event is not None:
            display.listen(allotted.event)
            plan = plan_for(prepared, chosen, allotted.grids)

        def write(file: Path) -> None:
            compress_to_file(
                tuned, chosen, file, prepared, plan, ledger=opened.ledger, listener=display.listen,
                grids=allotted.grids, scratch=scratch,
            )  # fmt: skip

        with solved_in(out.parent / f"{out.name}.blocks") as scratch:
            checked = deploy(out, write, lambda file: verify_file(file, tuned, prepared, plan))
        far = before.of(tuned)
    _say_checked(checked)
    _say_far(far, len(prepared.held_out))


@asking("device", "data", "test_data", "columns", "threads", file=False)
def export(model: Base, asked: Asked, ledger: LedgerFile = None, out: File = Path("model.gguf")) -> None:
    """Write a (tuned) model as GGUF in fp16, packed layers of its base as they are, and verify it in llama.cpp."""
    with _target(out), Display(Console()) as display:
        from edgetune.export.checked import deploy
        from edgetune.recipe.preflight import preflight
        from edgetune.run.deploy import codes_of, refuse_unmerged, verify_file, write_in_half

        opened = _open(model, ledger, asked)
        prepared = opened.prepared
        carried = codes_of(prepared) if opened.ledger is None else {}
        plan, planned = preflight(prepared, out, None, {name: one.grid for name, one in carried.items()})
        display.listen(planned)
        tuned = opened.model()
        refuse_unmerged(tuned)

        def write(file: Path) -> None:
            write_in_half(tuned, file, prepared, plan, ledger=opened.ledger, carried=carried)

        checked = deploy(out, write, lambda file: verify_file(file, tuned, prepared, plan))
    _say_checked(checked)


@asking("device", "calibration", "calibration_tokens", "data", "test_data", "columns", "threads", file=False)
def imatrix(model: Base, asked: Asked, ledger: LedgerFile = None, out: File = Path("imatrix.gguf")) -> None:
    """Write llama.cpp's importance matrix of a (tuned) model, for `llama-quantize --imatrix`."""
    with _target(out), Display(Console()):
        from edgetune.compress.blocks import decoder_blocks, matrices_in
        from edgetune.compress.energies import input_energies
        from edgetune.core.files import write_atomic
        from edgetune.export.architectures import architecture_of
        from edgetune.export.imatrix import write_imatrix
        from edgetune.recipe.calibration import calibration_of
        from edgetune.run.deploy import refuse_unmerged

        opened = _open(model, ledger, asked)
        architecture_of(opened.prepared.backbone.model.config)  # refused before the work
        tuned, calibration = opened.model(), calibration_of(opened.prepared)
        refuse_unmerged(tuned)
        names = {id(parameter): name for name, parameter in tuned.named_parameters()}
        linears = {
            name: one for block in decoder_blocks(tuned) for name, one in matrices_in(block, names)[0].items()
        }
        found = input_energies(tuned, linears, calibration.batches)
        said = calibration.event
        write_atomic(
            out,
            lambda file: write_imatrix(
                file, tuned.config, {name: (one.sums, one.tokens) for name, one in found.items()},
                sources=[said.source], sequences=said.sequences, length=said.tokens // max(said.sequences, 1),
            ),
        )  # fmt: skip
    typer.echo(f"{out}: {len(found)} matrices, {said.tokens:,} tokens")


@asking("device", "data", "test_data", "columns", "metric", "extract", "threads", file=False)
def evaluate(
    model: Base,
    asked: Asked,
    ledger: LedgerFile = None,
    gguf: Annotated[
        Path | None, typer.Option(help="Measure this file in llama.cpp instead; MODEL gives the prompts.")
    ] = None,
) -> None:
    """Print held-out loss, perplexity and Rouge-L of a model, a model with a ledger, or a GGUF file."""
    console = Console()
    with Display(console) as display:
        from edgetune.recipe.quality import model_quality

        opened = _open(model, ledger, asked, beside=gguf)
        prepared = opened.prepared
        if gguf is not None:
            from edgetune.export.llama_cpp import LlamaCpp
            from edgetune.measure.machine import usable_cores
            from edgetune.recipe.preflight import needed_context
            from edgetune.run.deploy import file_quality

            _refuse_other_base(gguf, prepared)
            threads = prepared.recipe.threads or usable_cores()
            with LlamaCpp(gguf, threads=threads, context=needed_context(prepared)) as engine:
                quality = file_quality(engine, prepared, display.progress)
        else:
            quality = model_quality(opened.model(), prepared, display.progress, "model")
    figures = [f"loss {quality.loss:.4f}", f"perplexity {quality.perplexity:.4f}"]
    if prepared.asked:
        figures.append(f"Rouge-L F1 {quality.rouge_l:.2f}")
    if prepared.scoring is not None and quality.score is not None:
        figures.append(f"{prepared.scoring.name} {quality.score:.2f}")
    for note in prepared.found.notes:
        console.print(note, highlight=False, soft_wrap=True)
    console.print(f"{len(prepared.held_out)} held-out records: {', '.join(figures)}", highlight=False)


def report(
    folder: Annotated[Path, typer.Argument(help="The folder of a run.")],
    rivals: Annotated[
        Path | None, typer.Option(help="JSON of other tools' files, to draw beside: name, bytes, kl.")
    ] = None,
) -> None:
    """Rebuild report.html, summary.json and the models' cards from a run's events, and print the table."""
    console = Console()
    with Display(console, doing="drawing"):
        from edgetune.cli.folder_cards import cards_of_run
        from edgetune.report.html import write_report
        from edgetune.report.rivals import read_rivals
        from edgetune.report.summary import read_summary, write_summary
        from edgetune.report.table import print_result

        summary = read_summary(folder)
        cards_of_run(folder)
        written = f"{write_report(folder, read_rivals(rivals) if rivals else ())}\n{write_summary(folder)}"
    print_result(console, summary)
    typer.echo(written)


@dataclass(frozen=True)
class Opened:
    """What a run on a model and data would work on, and the ledger to apply, if any."""

    prepared: Prepared
    path: Path | None
    ledger: Ledger | None

    def model(self) -> PreTrainedModel:
        """Return the (tuned) model."""
        from edgetune.federation.load import materialise

        backbone = self.prepared.backbone
        if self.ledger is None:
            return backbone.model
        return materialise(backbone, self.ledger, where=self.path)


def _open(
    model: str,
    ledger: Path | None,
    asked: Asked,
    *,
    beside: Path | None = None,
) -> Opened:
    """Prepare a model with data that nothing is trained on.

    A ledger or file that lies in the folder of its run is measured with that run's data and seed, so that no record
    it was trained on counts as held out.
    """
    from edgetune.core.ledger import read_ledger
    from edgetune.federation.load import refuse_other_base
    from edgetune.recipe.prepare import prepare

    artefact = ledger or beside
    recipe = asked.of_run(artefact.parent if artefact else None, model__source=model)
    opened = None if ledger is None else read_ledger(ledger)
    prepared = prepare(recipe, split=False)
    if opened is not None:
        refuse_other_base(prepared.backbone, opened, ledger)
    return Opened(prepared, ledger, opened)


def _say_checked(checked: Verified) -> None:
    sent = f" ({checked.transfer_bytes:,} sent as {checked.transfer_coding})"
    typer.echo(
        f"{checked.file}: {checked.size_bytes:,} bytes{sent if checked.transfer_bytes else ''}, "
        f"perplexity {checked.perplexity_llama_cpp:.4f} in llama.cpp"
    )


def _say_far(far: Divergence, records: int) -> None:
    typer.echo(
        f"predictions beside those before, {far.tokens:,} tokens of {records} held-out records: KL "
        f"{units.divergence(far.every)} ({units.divergence(far.response)} on responses, 99.9 % below "
        f"{units.divergence(far.rare)}), same first choice {units.percent(far.top_1)}"
    )


def _refuse_other_base(file: Path, prepared: Prepared) -> None:
    from edgetune.core.gguf_read import read_metadata

    named = str(read_metadata(file).get("edgetune.base_digest", prepared.backbone.digest))
    if named != prepared.backbone.digest:
        raise DigestError(
            f"the file was made from base {named[:12]}, not {prepared.backbone.digest[:12]}", where=file
        )


@contextmanager
def _target(path: Path) -> Iterator[None]:
    """Find out before the work whether the result can be written; refused work leaves no folder behind."""
    if path.exists() and not path.is_file():
        raise OutputError("not a regular file", where=path, hint="choose another --out")
    with without_trace(path.parent):
        writable_folder(path.parent)
        remove_partial(path)
        yield
