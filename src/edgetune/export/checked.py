"""A file gets its name only once it is checked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgetune.core.errors import EdgetuneError
from edgetune.core.export_events import Verified
from edgetune.core.files import PARTIAL, unwritable, write_atomic
from edgetune.export.transfer import Transfer, transfer_of


def deploy(path: Path, write: Callable[[Path], object], check: Callable[[Path], Verified]) -> Verified:
    """Write a file under a temporary name, check it, and give it its name only if the check passes.

    Args:
        path: the final file; an older one stays until then.
        write: makes the file at the path it is given.
        check: raises if the file is wrong.

    Returns:
        What the check measured, with the final name, the size of the file and of what is sent of it.

    Raises:
        Whatever `write` and `check` raise; no file is left then.
        OutputError: if the file cannot be written.
    """
    checked: list[Verified] = []
    sent: list[tuple[int, Transfer]] = []

    def make(temporary: Path) -> None:
        with _named(path, instead_of=temporary):
            write(temporary)
            checked.append(check(temporary))
            sent.append((temporary.stat().st_size, transfer_of(temporary)))

    write_atomic(path, make)
    size, transfer = sent[0]
    return replace(
        checked[0],
        file=str(path),
        size_bytes=size,
        transfer_bytes=transfer.size_bytes,
        transfer_coding=transfer.coding,
    )


@contextmanager
def scratch_file(path: Path) -> Iterator[Path]:
    """Lend a name beside `path`, on the disk that the final file will be on; what stands there is removed in the end.

    Raises:
        OutputError: if nothing can be written there.
    """
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f"{PARTIAL}{path.stem[:40]}-", suffix=path.suffix
        )
    except OSError as error:
        raise unwritable(error, path) from error
    os.close(handle)
    temporary = Path(name)
    try:
        with _named(path, instead_of=temporary):
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _named(path: Path, *, instead_of: Path) -> Iterator[None]:
    """Let errors about a temporary file speak of the file it was going to be."""
    try:
        yield
    except EdgetuneError as error:
        where = None if error.where is None else str(error.where).replace(str(instead_of), str(path))
        EdgetuneError.__init__(error, error.what, where=where, hint=error.hint)
        raise
