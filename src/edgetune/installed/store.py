"""What lies beside an installed file: its untouched base, its ledgers, and a record of every stack it has held."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from edgetune.core.errors import DigestError, ModelError
from edgetune.core.files import unwritable, write_atomic, write_text_atomic
from edgetune.installed.manifest import LARGEST, Manifest, read_manifest, stored_file

SUFFIX = ".edgetune"
"""Behind a file's name: the folder of what is needed to change it back."""
BASE, LEDGERS, NEXT, BACK = "base", "ledgers", "next.json", "back.json"
TRUSTED = "trusted"
"""Holds the public key whose manifests alone are taken, once one was given."""


class Store:
    """The folder beside an installed file; there is none while the file is its own base.

    A change is announced first (`next.json`, `back.json`), then the file is renamed into place, then the record is.
    Whoever is killed in between leaves the old file or the new one, and the next start finishes the record or drops it.

    Args:
        file: the installed file.

    Raises:
        ModelError: if a record is damaged, or the file is not what the newest record says.
        OutputError: if a change that was cut off cannot be finished.
    Cost: reads the file once, for its digest.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.folder = file, file.with_name(file.name + SUFFIX)
        if not file.is_file():
            raise ModelError("no such file", where=file)
        self._finish()
        self.records = [_record(path) for path in self._paths()]
        present = self.present
        if present is not None and stored_file(file) != present.result:
            raise DigestError(
                "this file is not what was installed here: something else has changed it",
                where=file,
                hint=f"put the base back from {self.folder / BASE}, then remove {self.folder.name}",
            )

    @property
    def present(self) -> Manifest | None:
        """What the file holds now; None if it is its own base."""
        return self.records[-1] if self.records else None

    @property
    def base(self) -> Path:
        """The untouched base."""
        kept = self.folder / BASE
        return kept if kept.is_file() else self.file

    @property
    def trusted(self) -> str | None:
        """The public key, hexadecimal, whose manifests alone are taken; None if none was given yet."""
        path = self.folder / TRUSTED
        return path.read_text(encoding="ascii", errors="replace").strip() if path.is_file() else None

    def ledger(self, sha256: str) -> Path:
        """Return where a ledger of that digest is kept, or would be."""
        return self.folder / LEDGERS / f"{sha256}.ledger"

    def commit(
        self, result: Path, manifest: Manifest, ledgers: Mapping[str, Path], trusted: str | None = None
    ) -> None:
        """Put a finished file into place, and a record of it on the others.

        Args:
            result: the new file, beside the old one; checked.
            manifest: what it holds.
            ledgers: SHA-256 to file, of those that are not kept yet.
            trusted: the key to trust from now on; None leaves it as it is.

        Raises:
            OutputError: if something cannot be written; the file is then the old one.
        """
        try:
            (self.folder / LEDGERS).mkdir(parents=True, exist_ok=True)
            self._keep_base()
            for digest, path in ledgers.items():
                if not self.ledger(digest).is_file():
                    data = path.read_bytes()
                    write_atomic(self.ledger(digest), lambda file, data=data: file.write_bytes(data))  # type: ignore[misc]
            if trusted is not None:
                write_text_atomic(self.folder / TRUSTED, trusted + "\n")
            write_text_atomic(self.folder / NEXT, manifest.text())
            self._put(result)
            self._finish()
        except OSError as error:
            raise unwritable(error, self.folder) from error
        self.records.append(manifest)

    def back(self, result: Path, depth: int) -> None:
        """Put an older file into place, and drop the records above it.

        Args:
            result: the file, beside the present one; checked.
            depth: records that stay; 0 leaves the base alone and no folder.

        Raises:
            OutputError: if something cannot be written; the file is then the present one.
        """
        target = self.records[depth - 1] if depth else None
        try:
            if target is not None:
                write_text_atomic(self.folder / BACK, target.text())
            else:
                write_text_atomic(self.folder / BACK, "")
            self._put(result)
            self._finish()
        except OSError as error:
            raise unwritable(error, self.folder) from error
        self.records = self.records[:depth]

    def _keep_base(self) -> None:
        """Keep the base under a second name, without a copy where the file system has links."""
        kept = self.folder / BASE
        if kept.is_file():
            return
        partial = self.folder / f"{BASE}.new"
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        try:
            os.link(self.file, partial)
        except OSError:
            shutil.copyfile(self.file, partial)
        place(partial, kept)

    def _put(self, result: Path) -> None:
        """Rename a file over the installed one, with its permissions."""
        shutil.copymode(self.file, result)
        with result.open("rb") as written:
            os.fsync(written.fileno())
        place(result, self.file)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9][0-9][0-9][0-9].json"))

    def _finish(self) -> None:
        """Finish what was announced where the file is there already, else forget it."""
        announced, back = self.folder / NEXT, self.folder / BACK
        try:
            if announced.is_file():
                if stored_file(self.file) == _record(announced).result:
                    place(announced, self.folder / f"{len(self._paths()) + 1:04}.json")
                else:
                    announced.unlink()
            if back.is_file():
                self._step_back(back)
            if (
                self.folder.is_dir()
                and not self._paths()
                and stored_file(self.file) == stored_file(self.base)
            ):
                shutil.rmtree(self.folder)
        except OSError as error:
            raise unwritable(error, self.folder) from error

    def _step_back(self, announced: Path) -> None:
        target = _record(announced) if announced.stat().st_size else None
        wanted = stored_file(self.folder / BASE) if target is None else target.result
        if stored_file(self.file) == wanted:
            for path in reversed(self._paths()):
                if target is not None and _record(path) == target:
                    break
                path.unlink()
        announced.unlink()


def place(source: Path, target: Path) -> None:
    """Rename a file, and wait until the disk has it."""
    source.replace(target)
    with contextlib.suppress(OSError):  # not every system opens folders
        handle = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _record(path: Path) -> Manifest:
    with path.open("rb") as file:
        return read_manifest(file.read(LARGEST + 1), path)
