"""Atomic writes: a reader sees the old file or the new one, never half of either."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgetune.core.errors import OutputError


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it over `path`.

    Args:
        path: the final file; its folder is created if missing.
        write: called once with the temporary path, which has the same suffix.

    Raises:
        OutputError: if the target is no regular file, the folder is read-only or the disk is full; nothing is
            left behind.
    """
    temporary: Path | None = None
    if path.exists() and not path.is_file():
        raise OutputError("not a regular file", where=path, hint="choose another name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write: {error.strerror or error}", where=path, hint=_advice(error)
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text through `write_atomic`."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def writable_folder(path: Path) -> Path:
    """Create a folder and prove that a file can be written there, before any long work starts.

    Raises:
        OutputError: if it cannot be created or written to.
    """
    write_atomic(path / ".edgetune-probe", lambda temporary: temporary.write_bytes(b"\0" * 4096))
    (path / ".edgetune-probe").unlink()
    return path


def _advice(error: OSError) -> str:
    return "choose another folder with --out, or free some space" if error.errno else "check the folder"
