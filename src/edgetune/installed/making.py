"""At the desk of whoever makes updates: a copy with ledgers on it, a manifest, its signature."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edgetune.core.errors import ConfigError, ModelError
from edgetune.core.files import PARTIAL, unwritable, write_atomic, write_text_atomic
from edgetune.core.ledger import read_ledger
from edgetune.installed.base import Base, Loaded, Written, apply
from edgetune.installed.install import opened, provenance, stack
from edgetune.installed.manifest import LARGEST, Manifest, read_manifest, stored_file
from edgetune.installed.reading import change_of
from edgetune.installed.signing import sign
from edgetune.installed.whole import whole_folder

ENOUGH = 0.97
"""Share of a change below which a person is told what holds more of it."""


def write_copy(base: Base, ledgers: Sequence[Path], out: Path, *, key: bytes | None = None) -> str:
    """Write a base with ledgers on it as another file, or another folder, of the same kind; all of it or nothing.

    Args:
        base: stays as it is.
        ledgers: files, the lowest first.
        out: the file or folder.
        key: 32 bytes, if the directions are under a secret key.

    Returns:
        One line for a person.

    Raises:
        ModelError, DigestError, OutputError: as `apply`.
    """
    loaded = list[Loaded]()
    for path in ledgers:
        ledger = read_ledger(path)
        base.check(ledger, path)
        loaded.append(Loaded(ledger, change_of(ledger, base.outline, key=key, where=path), path))
    found = list[Written]()
    said = provenance(base, loaded)
    if base.path.is_dir():
        with whole_folder(out) as partial:
            found.append(apply(base, loaded, partial, said))
    else:
        if out.exists() and out.resolve() == base.path.resolve():
            raise ConfigError(
                "this is the base itself", where=out, hint="--in-place changes it and keeps the base"
            )
        write_atomic(out, lambda file: found.append(apply(base, loaded, file, said)))
    (written,) = found
    kind = "the base itself" if written.direct else "a rounded copy of the base"
    said_kept = arrived(written.kept)
    return (
        f"{out}: {written.changed} of {written.tensors} tensors changed, {len(loaded)} on {kind}; {said_kept}"
    )


def arrived(kept: float) -> str:
    """Say how much of a change a file's types hold, and what holds more where that is little."""
    hint = "" if kept >= ENOUGH else " (--touched Q8_0 or F16 holds more, an adapter all of LoRA's)"
    return f"{100 * kept:.1f} % of the change arrived{hint}"


def make(
    base: Path,
    ledgers: Sequence[Path],
    out: Path,
    *,
    key: Path | None = None,
    serial: int | None = None,
    touched: str = "own",
) -> tuple[Manifest, float]:
    """Write a manifest: what devices with this base shall hold, and the digest of what comes out.

    Returns:
        The manifest, and the share of the change that the file holds (`Written`).

    Args:
        base: the GGUF file that devices have installed, untouched.
        ledgers: files, the lowest first, of different names; devices find them beside the manifest.
        out: the manifest.
        key: private key to sign with; None leaves it unsigned.
        serial: its number; one more than that of the manifest it replaces, or 1, if not given.
        touched: as in `Manifest`.

    Raises:
        ConfigError: if two ledgers have one name, or one lies elsewhere than beside the manifest.
        ModelError, DigestError, OutputError: as `stack`.
    Cost: one application, for the digest.
    """
    names = [path.name for path in ledgers]
    if len(set(names)) < len(names):
        raise ConfigError(
            "two ledgers have the same name", where=max(names, key=names.count), hint="rename one"
        )
    for path in ledgers:
        if path.resolve().parent != out.resolve().parent:
            hint = f"copy it to {out.resolve().parent}"
            raise ConfigError("devices look for ledgers beside the manifest", where=path, hint=hint)
    if serial is None:
        serial = _read(out).serial + 1 if out.is_file() else 1
    try:
        with tempfile.TemporaryDirectory(dir=out.resolve().parent, prefix=PARTIAL) as work:
            made, kept = stack(base, ledgers, Path(work) / "result", touched)
    except OSError as error:
        raise unwritable(error, out) from error
    made = replace(made, serial=serial)
    made = sign(made, key) if key is not None else made
    write_text_atomic(out, made.text())
    return made, kept


def sign_file(path: Path, key: Path) -> None:
    """Sign a manifest where it lies.

    Raises:
        ModelError: if it is none.
        ConfigError, MissingExtraError: as `sign`.
    """
    write_text_atomic(path, sign(_read(path), key).text())


def held(file: Path) -> str:
    """Return what an installed file holds, as the JSON text of its newest record.

    Raises:
        ConfigError: if it was never changed here.
        ModelError, DigestError: as `Store`.
    """
    with opened(file) as (store, _):
        if store.present is None:
            sha = stored_file(file).sha256
            raise ConfigError(
                f"this file is its own base (SHA-256 {sha[:12]}): no ledger was put on it", where=file
            )
        return store.present.text()


def _read(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            return read_manifest(file.read(LARGEST + 1), path)
    except OSError as error:
        raise ModelError(f"cannot read this manifest: {error.strerror}", where=path) from error
