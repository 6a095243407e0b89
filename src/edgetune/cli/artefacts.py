"""`compress`, `export`, `evaluate`, `chat`, `serve` and `report`: what takes a model, a file or a finished run."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgetune.cli.options import Asked, asking
from edgetune.core.errors import ConfigError, DigestError, OutputError
from edgetune.core.files import remove_partial, writable_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from edgetune.core.events import ExportPlanned, Verified
    from edgetune.core.ledger import Ledger
    from edgetune.recipe.prepare import Prepared

Base = Annotated[str, typer.Argument(help="Model folder, GGUF file, Hub id, or 'embedded'.")]
LedgerFile = Annotated[Path | None, typer.Option("--ledger", "-l", help="A fine-tune of this base.")]
Gguf = Annotated[Path, typer.Argument(help="A GGUF file.")]
File = Annotated[Path, typer.Option("--out", "-o", help="The GGUF file to write.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (compress, export, evaluate, chat, serve, report):
        app.command()(command)


@asking("device", "compression", "grid", "data", "threads", file=False)
def compress(model: Base, asked: Asked, ledger: LedgerFile = None, out: File = Path("model.gguf")) -> None:
    """Compress a (tuned) model in one shot, write it as GGUF and verify it in llama.cpp."""
    from edgetune.export.checked import deploy
    from edgetune.recipe.preflight import compression_of, preflight
    from edgetune.run.deploy import compress_to_file, verify_file

    opened = _open(model, ledger, asked, target=out)
    prepared, chosen = opened.prepared, compression_of(opened.prepared.recipe)
    plan, planned = preflight(prepared, out, chosen)
    _say_planned(planned)
    tuned, digest = opened.model()

    def write(file: Path) -> None:
        compress_to_file(tuned, chosen, file, prepared, plan, ledger_digest=digest)

    _say_checked(deploy(out, write, lambda file: verify_file(file, tuned, prepared, plan)))


@asking("device", "data", "threads", file=False)
def export(model: Base, asked: Asked, ledger: LedgerFile = None, out: File = Path("model.gguf")) -> None:
    """Write a (tuned) model as GGUF in fp16, without compression, and verify it in llama.cpp."""
    from edgetune.export.checked import deploy
    from edgetune.recipe.preflight import preflight
    from edgetune.run.deploy import refuse_prefix, verify_file, write_in_half

    opened = _open(model, ledger, asked, target=out)
    prepared = opened.prepared
    plan, planned = preflight(prepared, out, None)
    _say_planned(planned)
    tuned, digest = opened.model()
    refuse_prefix(tuned)

    def write(file: Path) -> None:
        write_in_half(tuned, file, prepared, plan, ledger_digest=digest)

    _say_checked(deploy(out, write, lambda file: verify_file(file, tuned, prepared, plan)))


@asking("device", "data", "threads", file=False)
def evaluate(
    model: Base,
    asked: Asked,
    ledger: LedgerFile = None,
    gguf: Annotated[
        Path | None, typer.Option(help="Measure this file in llama.cpp instead; MODEL gives the prompts.")
    ] = None,
) -> None:
    """Print held-out loss, perplexity and Rouge-L of a model, a model with a ledger, or a GGUF file."""
    from edgetune.cli.display import Display
    from edgetune.recipe.quality import model_quality

    console = Console()
    opened = _open(model, ledger, asked, beside=gguf)
    prepared = opened.prepared
    with Display(console) as display:
        if gguf is not None:
            from edgetune.export.llama_cpp import LlamaCpp
            from edgetune.recipe.preflight import needed_context
            from edgetune.run.deploy import file_quality

            _refuse_other_base(gguf, prepared)
            threads = _threads(prepared.recipe.threads)
            with LlamaCpp(gguf, threads=threads, context=needed_context(prepared)) as engine:
                quality = file_quality(engine, prepared, display.progress)
        else:
            quality = model_quality(opened.model()[0], prepared, display.progress, "model")
    console.print(
        f"{len(prepared.held_out)} held-out records: loss {quality.loss:.4f}, "
        f"perplexity {quality.perplexity:.4f}, Rouge-L F1 {quality.rouge_l:.2f}",
        highlight=False,
    )


def chat(
    file: Gguf,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", help="Print the answer to this and leave; - reads standard input."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token each time; above it answers are drawn.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="What answers are drawn from.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    threads: Threads = None,
) -> None:
    """Talk to a GGUF file in the terminal, through llama.cpp.

    /help lists what a line can ask for; Ctrl-D leaves.

    Exit codes: 2 wrong option; 4 no such file, or none that can chat.
    """
    from edgetune.export.chat import Manner, answer
    from edgetune.export.chat import chat as talk

    manner = Manner(system, temperature, seed, max_tokens)
    if prompt is not None:
        asked = sys.stdin.read() if prompt == "-" else prompt
        typer.echo(answer(file, asked, manner=manner, threads=_threads(threads)))
        return
    person = sys.stdin.isatty()
    talk(
        file,
        read=input if person else lambda _: input(),
        greeting="/help lists the commands, Ctrl-D leaves\n" if person else "",
        manner=manner,
        threads=_threads(threads),
    )


def serve(
    file: Gguf,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 picks a free one.")] = 8080,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="EDGETUNE_API_KEY", help="The key clients must send; a random one without it."),
    ] = None,
    no_api_key: Annotated[bool, typer.Option("--no-api-key", help="Ask for no key; loopback only.")] = False,
    threads: Threads = None,
) -> None:
    """Serve a GGUF file as an OpenAI-compatible HTTP server, through llama.cpp, until Ctrl-C.

    Exit codes: 2 taken port or wrong option; 4 no such file, or no GGUF file.
    """
    from edgetune.export.serve import Address, new_key
    from edgetune.export.serve import serve as listen

    if api_key is not None and no_api_key:
        raise ConfigError("a key and no key", where="--no-api-key", hint="leave one of them out")

    def announce(address: Address) -> None:
        typer.echo(address.url)
        if address.key is not None and address.key != api_key:
            typer.echo(f"API key: {address.key}")

    key = None if no_api_key else new_key() if api_key is None else api_key
    listen(file, host=host, port=port, key=key, threads=_threads(threads), announce=announce)


def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Rebuild report.html and summary.json from a run's events, and print the table."""
    from edgetune.report.html import write_report
    from edgetune.report.summary import read_summary, write_summary
    from edgetune.report.table import print_result

    print_result(Console(), read_summary(folder))
    typer.echo(f"{write_report(folder)}\n{write_summary(folder)}")


def _threads(asked: int | None) -> int:
    return asked or os.cpu_count() or 1


@dataclass(frozen=True)
class _Opened:
    """What a run on a model and data would work on, and the ledger to apply, if any."""

    prepared: Prepared
    path: Path | None
    ledger: Ledger | None

    def model(self) -> tuple[PreTrainedModel, str]:
        """Return the (tuned) model, and the ledger's digest or nothing."""
        from edgetune.federation.load import materialise

        backbone = self.prepared.backbone
        if self.ledger is None:
            return backbone.model, ""
        return materialise(backbone, self.ledger, where=self.path), self.ledger.digest


def _open(
    model: str,
    ledger: Path | None,
    asked: Asked,
    *,
    beside: Path | None = None,
    target: Path | None = None,
) -> _Opened:
    """Prepare a model with data that nothing is trained on.

    A ledger or file that lies in the folder of its run is measured with that run's data and seed, so that no record
    it was trained on counts as held out.
    """
    from edgetune.core.ledger import read_ledger
    from edgetune.federation.load import refuse_other_base
    from edgetune.recipe.prepare import prepare

    artefact = ledger or beside
    recipe = asked.of_run(artefact.parent if artefact else None, model__source=model)
    if target is not None:
        _refuse_target(target)
    opened = None if ledger is None else read_ledger(ledger)
    prepared = prepare(recipe, split=False)
    if opened is not None:
        refuse_other_base(prepared.backbone, opened, ledger)
    return _Opened(prepared, ledger, opened)


def _say_planned(planned: ExportPlanned) -> None:
    from edgetune.report.notes import export_notes

    for note in export_notes(planned):
        typer.echo(note)


def _say_checked(checked: Verified) -> None:
    size = Path(checked.file).stat().st_size
    typer.echo(f"{checked.file}: {size:,} bytes, perplexity {checked.perplexity_llama_cpp:.4f} in llama.cpp")


def _refuse_other_base(file: Path, prepared: Prepared) -> None:
    from edgetune.core.gguf_read import read_metadata

    named = str(read_metadata(file).get("edgetune.base_digest", prepared.backbone.digest))
    if named != prepared.backbone.digest:
        raise DigestError(
            f"the file was made from base {named[:12]}, not {prepared.backbone.digest[:12]}", where=file
        )


def _refuse_target(path: Path) -> None:
    """Find out before the work whether the result can be written."""
    if path.exists() and not path.is_file():
        raise OutputError("not a regular file", where=path, hint="choose another --out")
    writable_folder(path.parent)
    remove_partial(path)
