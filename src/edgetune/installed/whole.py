"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetune.core.errors import OutputError
from edgetune.core.files import PARTIAL, unwritable


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Lend an empty folder that becomes `folder` at the end, by one rename; nothing is left if the block raises.

    Raises:
        OutputError: if there is something of that name that is no empty folder, or it cannot be written.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError("there is something here already", where=folder, hint="choose another --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{PARTIAL}{folder.name[:40]}-"))
    except OSError as error:
        raise unwritable(error, folder) from error
    try:
        yield partial
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        for file in partial.iterdir():
            file.chmod(0o666 & ~umask)
            with file.open("rb") as written:
                os.fsync(written.fileno())
        partial.replace(folder)
    except OSError as error:
        raise unwritable(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
