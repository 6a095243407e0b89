"""`apply`, `rollback`, `adapter`, `manifest` and `sign`: ledgers on files that devices run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from edgetune.cli.display import Display
from edgetune.core.errors import ConfigError

if TYPE_CHECKING:
    from edgetune.installed.base import Base
    from edgetune.installed.install import Done
    from edgetune.installed.parts import Parts

BaseName = Annotated[str, typer.Argument(help="GGUF file, model folder, Hub id, or 'embedded'.")]
Ledgers = Annotated[list[Path] | None, typer.Argument(help="Ledgers of this base, the lowest first.")]
TouchedName = Annotated[
    str | None,
    typer.Option(
        "--touched",
        help="Changed matrices of a quantised file: own (its grid), F16, or a grid such as Q8_0; own if not set.",
    ),
]
Older = Annotated[bool, typer.Option("--older", help="Take an older update than the installed one.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    for command in (apply, rollback, adapter, manifest, sign):
        app.command()(command)


def apply(
    base: BaseName,
    ledgers: Ledgers = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file or folder to write.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Change BASE itself; edgetune rollback changes it back.")
    ] = False,
    add: Annotated[bool, typer.Option("--add", help="Put them on the ledgers that the file holds.")] = False,
    source: Annotated[
        str | None,
        typer.Option("--manifest", help="What to hold: a file, https://..., or http:// of this machine."),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Public key that must have signed the manifest.")] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Take a manifest without a signature.")
    ] = False,
    older: Older = False,
    touched: TouchedName = None,
) -> None:
    """Apply ledgers to a base: a file of the same kind, or the installed file changed in place."""
    paths = ledgers or []
    _check_asked(out, in_place, source, paths)
    with Display(Console(), doing="applying"):
        if out is not None:
            said = _written(base, paths, out, _touched(touched))
        elif source is not None:
            said = _updated(Path(base), source, paths, key, unsigned, older)
        else:
            from edgetune.installed.install import change

            done = change(Path(base), paths, add=add, older=older, touched=_touched(touched))
            said = _say(Path(base), done)
    typer.echo(said)


def rollback(
    file: Annotated[Path, typer.Argument(help="A GGUF file that edgetune apply changed in place.")],
    to_base: Annotated[
        bool, typer.Option("--base", help="To the base, and not only one change back.")
    ] = False,
) -> None:
    """Change an installed file back, byte for byte."""
    with Display(Console(), doing="rolling back"):
        from edgetune.installed.install import rollback as back

        done = back(file, to_base=to_base)
    typer.echo(_say(file, done))


def adapter(
    ledger: Annotated[
        Path, typer.Argument(help="A ledger of a LoRA method, or along directions of rank one.")
    ],
    base: Annotated[
        str, typer.Option(help="What it belongs to: GGUF file, model folder, Hub id, or 'embedded'.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="NAME.gguf for llama.cpp (--lora), else a folder for peft.")
    ],
    text: Annotated[
        Path | None,
        typer.Option(
            help="A text to measure on what an adapter must leave out; records of our own if not set."
        ),
    ] = None,
    measured: Annotated[
        bool,
        typer.Option(
            "--measured/--unmeasured", help="Whether that is measured: it takes the model in memory."
        ),
    ] = True,
) -> None:
    """Write a ledger as an adapter that llama.cpp or peft puts on the untouched base."""
    with Display(Console(), doing="writing"):
        from edgetune.core.ledger import read_ledger
        from edgetune.installed.adapter import write_gguf_adapter, write_peft_adapter
        from edgetune.installed.parts import parts_of

        read, opened = read_ledger(ledger), _open(base, None)
        parts = parts_of(read, opened, where=ledger)
        write = write_gguf_adapter if out.suffix == ".gguf" else write_peft_adapter
        made = write(out, parts, opened, read)
    size = sum(one.stat().st_size for one in ([out] if out.is_file() else out.iterdir()))
    said = f"{made.layers} layers, {size:,} bytes"
    if out.is_dir():
        from edgetune.cli.folder_cards import card_of_adapter

        card_of_adapter(out, base, opened, read, said)
    typer.echo(f"{out}: {said}")
    if made.left:
        typer.echo(_missing(opened, parts, made.left, text, measured))
    elif parts.tied and out.suffix != ".gguf":
        typer.echo(
            f"{parts.tied} is the embedding table once more: peft computes with it, but merges it twice"
        )


def manifest(
    base: Annotated[Path, typer.Argument(help="The GGUF file that devices have installed.")],
    ledgers: Ledgers = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The manifest to write.")] = Path("update.json"),
    key: Annotated[Path | None, typer.Option(help="Private key to sign it with.")] = None,
    serial: Annotated[
        int | None,
        typer.Option(min=1, help="Its number; one more than that of the file it replaces, if not set."),
    ] = None,
    touched: TouchedName = None,
) -> None:
    """Write what devices shall hold, for their `edgetune apply --manifest`; without ledgers print what a file holds."""
    from edgetune.installed.making import arrived, held, make

    if not ledgers:
        typer.echo(held(base), nl=False)
        return
    with Display(Console(), doing="applying"):
        made, kept = make(base, ledgers, out, key=key, serial=serial, touched=_touched(touched) or "own")
    signed = "signed" if made.signature else "not signed (edgetune sign)"
    typer.echo(
        f"{out}: number {made.serial}, {len(made.ledgers)} ledgers of {sum(one.bytes for one in made.ledgers):,} "
        f"bytes on a base of {made.base.bytes:,}, {signed}; {arrived(kept)}"
    )


def sign(
    file: Annotated[Path | None, typer.Argument(help="A manifest; the signature is written into it.")] = None,
    key: Annotated[Path | None, typer.Option(help="The private key.")] = None,
    new: Annotated[
        Path | None,
        typer.Option(help="Make a key pair instead: this file, and beside it FILE.pub for devices."),
    ] = None,
) -> None:
    """Sign a manifest (Ed25519), or make the keys for it."""
    from edgetune.installed.making import sign_file
    from edgetune.installed.signing import new_key

    if new is not None and file is None:
        typer.echo(f"{new}: keep it secret\n{new_key(new)}: give it to the devices")
    elif file is not None and key is not None and new is None:
        sign_file(file, key)
        typer.echo(f"{file}: signed")
    else:
        raise ConfigError("edgetune sign takes MANIFEST --key KEY, or --new KEY alone")


def _check_asked(out: Path | None, in_place: bool, source: str | None, ledgers: list[Path]) -> None:
    if out is None and not in_place and source is None:
        hint = (
            "--out FILE writes another file, --in-place changes this one, --manifest says what it shall hold"
        )
        raise ConfigError("where shall the result go?", hint=hint)
    if out is not None and (in_place or source is not None):
        raise ConfigError("--out writes another file; --in-place and --manifest change this one")
    if source is None and not ledgers:
        raise ConfigError("no ledger is named", hint="edgetune apply BASE LEDGER ...")


def _touched(name: str | None) -> str | None:
    from edgetune.installed.manifest import touched_named

    if name is not None:
        try:
            touched_named(name)
        except ValueError as error:
            raise ConfigError(str(error), where="--touched") from error
    return name


def _open(base: str, touched: str | None) -> Base:
    from edgetune.installed.gguf import GgufBase
    from edgetune.installed.manifest import touched_named
    from edgetune.installed.packed import folder_base
    from edgetune.models.source import find_model

    place = find_model(base)
    return GgufBase(place, touched_named(touched or "own")) if place.is_file() else folder_base(place)


def _written(base: str, ledgers: list[Path], out: Path, touched: str | None) -> str:
    from edgetune.cli.folder_cards import card_of_applied
    from edgetune.installed.making import write_copy

    opened = _open(base, touched)
    said = write_copy(opened, ledgers, out)
    if out.is_dir():
        card_of_applied(out, base, opened, ledgers, said)
    return said


def _updated(file: Path, source: str, own: list[Path], key: Path | None, unsigned: bool, older: bool) -> str:
    from edgetune.installed.fetching import Source
    from edgetune.installed.install import update
    from edgetune.installed.signing import public_key

    trusted = public_key(key) if key is not None else None
    done = update(file, Source(source), trusted=trusted, unsigned=unsigned, own=own, older=older)
    return f"{_say(file, done)}\n{done.fetched:,} bytes were fetched"


def _missing(base: Base, parts: Parts, left: tuple[str, ...], text: Path | None, measured: bool) -> str:
    vectors = [name for name in left if name in parts.whole and parts.whole[name].dim() == 1]
    names = [name for name in left if name not in vectors]
    names += [f"{len(vectors)} vectors"] if vectors else []
    said = f"left out, for want of a place: {', '.join(names)}"
    if measured:
        from edgetune.installed.left_out import divergence_without

        with Display(Console(), doing="measuring"):
            far = divergence_without(base, parts.change, left, text)
        said += f"; KL to the whole fine-tune {far.every:.1e} nats a token, of {far.tokens:,}"
    fit = "method.target=linear (of fedskip: method.head=false)"
    return f"{said}\n{fit} tunes what an adapter can hold and nothing else"


def _say(file: Path, done: Done) -> str:
    size = f"{file}: {file.stat().st_size:,} bytes"
    if not done.changed:
        return f"{size}, as it was"
    if done.present is None:
        return f"{size}, the base again"
    from edgetune.installed.making import arrived

    told = "" if done.kept == 1 else f"; {arrived(done.kept)}"
    names = ", ".join(f"{one.name} ({one.method}, round {one.round})" for one in done.present.ledgers)
    return f"{size}, SHA-256 {done.present.result.sha256[:12]}, holds {names or 'its base alone'}{told}"
