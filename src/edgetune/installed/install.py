"""Change an installed file by ledgers, and change it back: everything is checked before anything is touched."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from edgetune.core.errors import ConfigError, DigestError
from edgetune.core.files import PARTIAL, locked, unwritable
from edgetune.core.ledger import read_ledger
from edgetune.installed.base import Base, Loaded, apply
from edgetune.installed.fetching import Source
from edgetune.installed.gguf import GgufBase
from edgetune.installed.manifest import (
    Entry,
    Manifest,
    Stored,
    entry_of,
    read_manifest,
    stored_file,
    touched_named,
)
from edgetune.installed.reading import change_of
from edgetune.installed.refusing import check_trust, refuse_fewer_rounds, refuse_lower_serial, refuse_record
from edgetune.installed.store import Store

WORK = f"{PARTIAL}apply-"
"""How folders begin in which a file is made; a killed start may leave one."""
Files = Mapping[str, Path]
"""SHA-256 of a ledger to its file."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a change came to.

    Args:
        present: what the file holds now; None if it is its base again.
        fetched: bytes that were read from the source of a manifest, its own included.
        changed: whether the file is another one than before.
        kept: share of the ledgers' change that the file holds (`Written`).
    """

    present: Manifest | None
    fetched: int
    changed: bool
    kept: float = 1.0


@contextmanager
def opened(file: Path) -> Iterator[tuple[Store, Path]]:
    """Keep an installed file to oneself, and lend a folder beside it in which the new one is made.

    Raises:
        OutputError: if somebody else is at work in the folder, or it cannot be written to.
        ConfigError: if it is a folder.
        ModelError, DigestError: as `Store`.
    """
    if file.is_dir():
        raise ConfigError(
            "a folder is not changed in place", where=file, hint="--out FOLDER writes another one"
        )
    file = file.resolve()  # what a link points to is what is installed
    with locked(file.parent):
        for left in file.parent.glob(f"{WORK}*"):
            shutil.rmtree(left, ignore_errors=True)
        store = Store(file)
        try:
            work = tempfile.TemporaryDirectory(dir=file.parent, prefix=WORK)
        except OSError as error:
            raise unwritable(error, file.parent) from error
        with work as name:
            yield store, Path(name)


def stack(
    base: Path, ledgers: Sequence[Path], target: Path, touched: str, *, key: bytes | None = None
) -> tuple[Manifest, float]:
    """Write a GGUF base with ledgers on it, and say what came out.

    Args:
        base: a GGUF file without ledgers.
        ledgers: files, the lowest first; none copies the base.
        target: the file to write, not its final name.
        touched: as in `Manifest`.
        key: 32 bytes, if the directions are under a secret key.

    Returns:
        A manifest with the serial number 1, and the share of the change that the file holds (`Written`).

    Raises:
        ModelError, DigestError, OutputError: as `base.apply`.
    """
    opened_base = GgufBase(base, touched_named(touched))
    loaded, entries = list[Loaded](), list[Entry]()
    for path in ledgers:
        ledger = read_ledger(path)
        opened_base.check(ledger, path)
        loaded.append(Loaded(ledger, change_of(ledger, opened_base.outline, key=key, where=path), path))
        entries.append(entry_of(path, ledger))
    digest = loaded[0].ledger.base_digest if loaded else opened_base.claimed or opened_base.digest
    kept = 1.0
    if loaded:
        kept = apply(opened_base, loaded, target, provenance(opened_base, loaded)).kept
    else:
        shutil.copyfile(base, target)
    made = Manifest(1, stored_file(base), digest, tuple(entries), touched, stored_file(target))
    return made, kept


def provenance(base: Base, loaded: Sequence[Loaded]) -> dict[str, str]:
    """Return what a file says of its base and the ledgers on it."""
    return {
        "base_digest": base.claimed or base.digest,
        "ledger_digest": " ".join(one.ledger.digest for one in loaded),
        "method": " + ".join(one.ledger.method for one in loaded),
    }


def change(
    file: Path,
    ledgers: Sequence[Path],
    *,
    add: bool = False,
    older: bool = False,
    touched: str | None = None,
    key: bytes | None = None,
) -> Done:
    """Let an installed file hold these ledgers, and no others.

    Args:
        file: a GGUF file.
        ledgers: files, the lowest first.
        add: put them on those that the file holds already.
        older: take a ledger of fewer rounds than the present one of its run.
        touched: as in `Manifest`; what the file has now, or `own`, if not given.
        key: 32 bytes, if the directions are under a secret key.

    Raises:
        ModelError, DigestError, OutputError: nothing is changed then.
    """
    with opened(file) as (store, work):
        present = store.present
        beneath = [store.ledger(one.sha256) for one in present.ledgers] if present and add else []
        names = {store.ledger(one.sha256): one.name for one in present.ledgers} if present else {}
        chosen = touched or (present.touched if present else "own")
        made, kept = stack(store.base, [*beneath, *ledgers], work / store.file.name, chosen, key=key)
        entries = tuple(
            replace(one, name=names.get(path, one.name))
            for path, one in zip([*beneath, *ledgers], made.ledgers, strict=True)
        )
        signed = present.signed if present and add else None
        made = replace(made, ledgers=entries, serial=present.serial if present and add else 1, signed=signed)
        if not older:
            refuse_fewer_rounds(made, present, file)
        files = dict(zip([one.sha256 for one in entries], [*beneath, *ledgers], strict=True))
        return replace(_commit(store, work, made, files), kept=kept)


def update(
    file: Path,
    source: Source,
    *,
    trusted: str | None,
    unsigned: bool = False,
    own: Sequence[Path] = (),
    older: bool = False,
    key: bytes | None = None,
) -> Done:
    """Let an installed file hold what a manifest says, with ledgers of one's own above.

    The signature, the base, the order of serial numbers, every ledger and the file that comes out are checked, in this
    order, before the installed file or its folder is touched.

    Args:
        file: a GGUF file.
        source: where manifest and ledgers are.
        trusted: the public key, hexadecimal; the one given before if None.
        unsigned: take a manifest that nobody signed, where no key was ever trusted.
        own: ledgers that are this device's alone.
        older: go back to a lower serial number, or to a ledger of fewer rounds.
        key: 32 bytes, if the directions are under a secret key.

    Raises:
        ConfigError: if no key is trusted and `unsigned` is not set.
        DigestError: a wrong signature, another base, an older update, a damaged ledger, another result.
        ModelError, HostError, OutputError: as `Source`, `read_manifest`, `base.apply` and `Store`.
    """
    with opened(file) as (store, work):
        data = source.manifest()
        manifest = read_manifest(data, source.address)
        check_trust(manifest, trusted or store.trusted, unsigned, source)
        refuse_record(manifest, source.address)
        present = store.present
        if stored_file(store.base) != manifest.base:
            raise DigestError(
                f"this update is for the base {manifest.base.sha256[:12]}, another file than this one",
                where=source.address,
                hint="install that base first",
            )
        if not older:
            refuse_lower_serial(manifest, present, source.address)
            refuse_fewer_rounds(manifest, present, source.address)
        files, fetched = _ledgers(manifest, store, source, work)
        paths = [files[one.sha256] for one in manifest.ledgers]
        made, kept = stack(store.base, paths, work / "shared", manifest.touched, key=key)
        if made.result != manifest.result or made.base_digest != manifest.base_digest:
            what = f"the file that comes out is {made.result.sha256[:12]}, {manifest.result.sha256[:12]} was promised"
            raise DigestError(what, where=source.address, hint="tell who made the manifest")
        if own:
            made, kept = stack(store.base, [*paths, *own], work / store.file.name, manifest.touched, key=key)
        else:
            (work / "shared").replace(work / store.file.name)
        entries = manifest.ledgers + made.ledgers[len(paths) :]
        made = replace(made, serial=manifest.serial, ledgers=entries, signed=manifest.as_json())
        files = files | {one.sha256: path for one, path in zip(made.ledgers[len(paths) :], own, strict=True)}
        done = _commit(store, work, made, files, trusted)
        return replace(done, fetched=len(data) + fetched, kept=kept)


def rollback(file: Path, *, to_base: bool = False, key: bytes | None = None) -> Done:
    """Let an installed file be, byte for byte, what it was before the last change, or before all of them.

    Raises:
        ConfigError: if it was never changed.
        DigestError: if the older file does not come out as it was; nothing is changed then.
        ModelError, OutputError: as `Store`.
    """
    with opened(file) as (store, work):
        if not store.records:
            raise ConfigError(
                "this file was never changed here, so there is nothing to go back to", where=file
            )
        depth = 0 if to_base else len(store.records) - 1
        target = store.records[depth - 1] if depth else None
        result = work / store.file.name
        if target is None:
            shutil.copyfile(store.base, result)
            wanted: Stored = store.records[0].base
        else:
            stack(
                store.base,
                [store.ledger(one.sha256) for one in target.ledgers],
                result,
                target.touched,
                key=key,
            )
            wanted = target.result
        if stored_file(result) != wanted:
            raise DigestError("the older file does not come out as it was", where=file, hint="report this")
        store.back(result, depth)
        return Done(target, 0, True)


def _ledgers(manifest: Manifest, store: Store, source: Source, work: Path) -> tuple[dict[str, Path], int]:
    """Return the manifest's ledgers, those that are not kept already from its source, each checked."""
    files, fetched = dict[str, Path](), 0
    for one in manifest.ledgers:
        kept = store.ledger(one.sha256)
        path = work / f"{one.sha256}.ledger"
        if kept.is_file():
            path = kept
        else:
            data = source.beside(one.name, one.bytes)
            path.write_bytes(data)
            fetched += len(data)
        if stored_file(path) != Stored(one.sha256, one.bytes):
            what = "this ledger is not the one that the manifest names: it was changed or damaged"
            raise DigestError(what, where=one.name, hint="get it again")
        ledger = read_ledger(path)
        if (ledger.digest, ledger.round, ledger.fingerprint) != (one.digest, one.round, one.run):
            raise DigestError("the manifest says other things of this ledger than it does", where=one.name)
        files[one.sha256] = path
    return files, fetched


def _commit(store: Store, work: Path, made: Manifest, files: Files, trusted: str | None = None) -> Done:
    present = store.present
    if present is not None and present.as_json() == made.as_json() and trusted in (None, store.trusted):
        return Done(present, 0, False)
    store.commit(work / store.file.name, made, files, trusted)
    return Done(made, 0, True)
