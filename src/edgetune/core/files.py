"""Atomic writes and folders of one owner: a reader sees the old file or the new one, and two runs never mix theirs."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from edgetune.core.errors import OutputError

PARTIAL = ".edgetune-"
"""How names of files begin that are not yet what they will be; a killed run may leave some."""
PRIVATE = 0o600
"""Permissions of a file that only its owner may read."""


def write_atomic(path: Path, write: Callable[[Path], object], *, mode: int = 0o666) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it over `path`.

    Args:
        path: the final file; its folder is created if missing.
        write: called once with the temporary path, which has the same suffix.
        mode: permissions, less those that the user's mask takes away; until the end only the owner may read.

    Raises:
        OutputError: if the target is no regular file, the folder is read-only or the disk is full; nothing is
            left behind.
    """
    temporary: Path | None = None
    try:
        if path.exists() and not path.is_file():
            raise OutputError("not a regular file", where=path, hint="choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_beginning(path), suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(mode & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise unwritable(error, path) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text through `write_atomic`."""
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def writable_folder(path: Path) -> Path:
    """Create a folder and prove that a file can be written there, before any long work starts.

    Raises:
        OutputError: if it cannot be created or written to.
    """
    probe = path / f"{PARTIAL}probe"
    write_atomic(probe, lambda temporary: temporary.write_bytes(b"\0" * 4096))
    try:
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(error, path) from error
    return path


@contextlib.contextmanager
def without_trace(path: Path) -> Iterator[None]:
    """Remove at the end those of a folder and its parents that did not exist before and are empty."""
    try:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    except (OSError, ValueError):  # what cannot even be looked for will be refused
        missing = []
    try:
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def owned_folder(path: Path) -> Iterator[Path]:
    """Keep a folder to one run: create it, lock it, and remove what a killed run left unfinished there.

    The lock is the system's own on the folder itself; it ends with the process, however that ends. A run that is
    refused before it writes anything leaves no folder.

    Raises:
        OutputError: if the folder cannot be written to, or another run is at work in it.
    """
    with without_trace(path):
        writable_folder(path)
        with locked(path):
            for left in path.glob(f"{PARTIAL}*"):
                with contextlib.suppress(OSError):
                    left.unlink()
            yield path


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others who lock this folder out of it; the lock ends with the process, however that ends.

    Raises:
        OutputError: if somebody holds it, or the file system has none.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise unwritable(error, folder) from error
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def remove_partial(path: Path) -> None:
    """Remove what killed writers of one file left beside it; a writer that is at work now then fails, typed."""
    for left in path.parent.glob(f"{glob.escape(_beginning(path))}*{glob.escape(path.suffix)}"):
        with contextlib.suppress(OSError):
            left.unlink()


def unwritable(error: OSError, path: Path) -> OutputError:
    """Return what a person should read of a failed write."""
    advice = "choose another folder with --out, or free some space" if error.errno else "check the folder"
    return OutputError(f"cannot write: {error.strerror or error}", where=_short(path), hint=advice)


def _beginning(path: Path) -> str:
    return f"{PARTIAL}{path.stem[:40]}-"


def _lock(handle: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # no POSIX system: nothing there locks a folder
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            what, hint = "another run is at work in this folder", "wait for it, or choose another --out"
            raise OutputError(what, where=path, hint=hint) from error
        hint = "choose an --out on a file system with locks"
        raise OutputError(f"cannot lock this folder: {error.strerror}", where=path, hint=hint) from error


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) < 400 else f"{text[:200]} ... {text[-100:]}"
