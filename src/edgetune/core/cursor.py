"""A place in a binary file that anyone may have made: nothing is read that would leave the file."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from edgetune.core.errors import ModelError


class Cursor:
    """A place in an open file; whatever would leave the file is an error."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file, self.place = path, file, 0
        self.size = os.fstat(file.fileno()).st_size

    def bytes(self, count: int) -> bytes:
        """Return the next bytes."""
        self._advance(count)
        found = self._file.read(count)
        if len(found) < count:
            self.refuse("it became shorter while it was read")
        return found

    def skip(self, count: int) -> None:
        """Pass over bytes."""
        self._advance(count)
        self._file.seek(count, os.SEEK_CUR)

    def _advance(self, count: int) -> None:
        if count > self.size - self.place:
            self.refuse(f"it ends within {count} bytes at {self.place}")
        self.place += count

    def unpack(self, layout: str) -> tuple[Any, ...]:
        """Return the next fields of a `struct` layout, little-endian."""
        return struct.unpack(f"<{layout}", self.bytes(struct.calcsize(f"<{layout}")))

    def number(self, letter: str) -> int:
        """Return the next number."""
        return int(self.unpack(letter)[0])

    def string(self, most: int | None = None) -> str:
        """Return the next text, whose length comes first."""
        length = self.number("Q")
        if most is not None and length > most:
            self.refuse(f"a name of {length} bytes")
        try:
            return self.bytes(length).decode()
        except UnicodeDecodeError:
            self.refuse(f"a text before byte {self.place} is not UTF-8")

    def refuse(self, what: str) -> NoReturn:
        """Raise the error of a file that is none."""
        raise ModelError(
            f"this is not a readable GGUF file: {what}", where=self.path, hint="copy or export it again"
        )
