"""Text files line by line, whatever their writer put around a line, and never more of one than memory holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError

LONGEST_LINE = 32 << 20
"""Bytes of a line."""
ONE_OBJECT = "one object a line"


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers from 1, line ends included.

    A byte order mark is left out.

    Raises:
        DataError: the file cannot be read, a line is not UTF-8 text, or is longer than `LONGEST_LINE`.
    """
    number = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE:
                    what = f"this line has more than {LONGEST_LINE:,} bytes"
                    raise DataError(what, where=place(path, number), hint=ONE_OBJECT)
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        what = "this line is not UTF-8 text"
        raise DataError(what, where=place(path, number), hint="save the file as UTF-8") from error
    except OSError as error:
        raise DataError("cannot read this file", where=path, hint=error.strerror) from error


def place(path: Path, number: int) -> str:
    """Return where a line stands, for people."""
    return f"{path}, line {number}"


def parsed(text: str, what: str, where: str | Path, hint: str) -> Any:
    """Parse JSON.

    Raises:
        DataError: it is none, or has a number of thousands of digits, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not JSON: {str(error)[:200]}", where=where, hint=hint) from error
