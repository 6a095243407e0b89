"""Readers of files: whatever the format, a table of rows with their place for error messages."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError, EdgetuneError, MissingExtraError
from edgetune.data.lines import ONE_OBJECT, lines_of, parsed, place

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands (for error messages) and its columns, at least those that were asked for."""

LARGEST_JSON = 1 << 30
"""Bytes of a file that must be read at once."""
LISTS = ("data", "train", "records", "examples", "rows")
"""Names of the list that holds the records of a JSON object, where it has several lists."""
_AT_ONCE = 1024
"""Rows of a parquet file in memory at a time."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that can be read once.

    Args:
        where: the file or data set.
        columns: the names of the columns; where every row has its own, those of the first.
        first: the first row; empty where the types of the columns are known without reading it.
        rows: called once with the columns that are wanted, yields the rows; others may be left out.
    """

    where: str
    columns: tuple[str, ...]
    first: Mapping[str, Any]
    rows: Callable[[Sequence[str]], Iterator[Row]]


def of_rows(where: str, rows: Iterator[Row]) -> Table:
    """Return the table of rows that are objects of their own.

    Raises:
        DataError: there is no row.
    """
    start = next(rows, None)
    if start is None:
        raise DataError("there are no records here", where=where)
    return Table(where, tuple(start[1]), start[1], lambda columns: itertools.chain([start], rows))


def jsonl(path: Path) -> Table:
    """Open a file of one JSON object a line."""
    return of_rows(str(path), _objects(path))


def _objects(path: Path) -> Iterator[Row]:
    for number, text in lines_of(path):
        if not text.strip():
            continue
        where = place(path, number)
        value = parsed(text, "this line", where, ONE_OBJECT)
        if not isinstance(value, dict):
            raise DataError("this line is not a JSON object", where=where, hint=ONE_OBJECT)
        yield where, value


def json_file(path: Path) -> Table:
    """Open a JSON file: an array of objects, an object that holds such a list, or one object a line."""
    if path.stat().st_size > LARGEST_JSON:
        what = f"a JSON file of more than {LARGEST_JSON:,} bytes"
        raise DataError(what, where=path, hint=f"write it as .jsonl, {ONE_OBJECT}")
    text = "".join(line for _, line in lines_of(path))
    start = text.lstrip()[:1]
    if start not in ("[", "{"):
        raise DataError("this is neither a JSON array nor an object", where=path)
    try:
        value = parsed(text, "this file", path, "an array of objects, or one object a line")
    except DataError:
        if start == "{" and len(text.splitlines()) > 1:
            return jsonl(path)
        raise
    return of_rows(str(path), _members(path, value))


def _members(path: Path, value: Any) -> Iterator[Row]:
    if isinstance(value, dict):
        value = _listed(path, value)
    for number, one in enumerate(value, start=1):
        where = f"{path}, record {number}"
        if not isinstance(one, dict):
            raise DataError("this is not a JSON object", where=where, hint="an array of objects")
        yield where, one


def _listed(path: Path, value: dict[str, Any]) -> list[Any]:
    """Return the list of records that an object holds, or the object itself, which then is the only record."""
    lists = {
        name: rows
        for name, rows in value.items()
        if rows and isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    }
    if any(name.lower() in _OWN_LISTS for name in lists):
        return [value]
    named = [name for name in LISTS if name in lists]
    if named or len(lists) == 1:
        return lists[(named or list(lists))[0]]
    if lists:
        found = ", ".join(sorted(lists)[:20])
        what = f"this object holds several lists of objects: {found}"
        raise DataError(what, where=path, hint=f"name that of the records {LISTS[0]!r}")
    return [value]


_OWN_LISTS = ("instances", "messages", "conversations", "conversation")
"""Lists that belong to a record."""


def csv_file(path: Path, *, delimiter: str = ",") -> Table:
    """Open a table of text with a line of names at its top; semicolons separate where the names have no comma."""
    head = next((line for _, line in lines_of(path)), "")
    if delimiter == "," and "," not in head and ";" in head:
        delimiter = ";"
    return of_rows(str(path), _csv_rows(path, delimiter))


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader((line for _, line in lines_of(path)), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    try:
        for row in reader:
            where = place(path, reader.line_num)
            if not row:
                continue
            if names is None:
                names = [name.strip() for name in row]
                _refuse_twice(names, where)
            elif len(row) != len(names):
                what = f"this row has {len(row)} fields, the first line names {len(names)}"
                raise DataError(what, where=where, hint=_QUOTES)
            else:
                yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise DataError(f"not a table: {error}", where=place(path, reader.line_num), hint=_QUOTES) from error


def _refuse_twice(names: Sequence[str], where: str) -> None:
    again = next((name for at, name in enumerate(names) if name and name in names[:at]), None)
    if again is not None:
        raise DataError(f"two columns have the name {again!r}", where=where, hint="rename one of them")


_QUOTES = (
    'a field with a separator, a quotation mark or a line end stands in "...", its quotation marks doubled'
)


def text_file(path: Path) -> Table:
    """Open a text: records are separated by blank lines, and where there is no blank line, every line is one."""
    return of_rows(str(path), _paragraphs(path))


def _paragraphs(path: Path) -> Iterator[Row]:
    filled = [bool(text.strip()) for _, text in lines_of(path)]
    inside = True in filled and False in filled[filled.index(True) : len(filled) - filled[::-1].index(True)]
    begun, at = list[str](), 0
    for number, text in lines_of(path):
        if text.strip():
            at = at if begun else number
            begun.append(text)
        if begun and not (inside and text.strip()):
            yield place(path, at), {"text": "".join(begun).strip("\r\n")}
            begun = []
    if begun:
        yield place(path, at), {"text": "".join(begun).strip("\r\n")}


def parquet(path: Path) -> Table:
    """Open a parquet file; other columns than those asked for are not read.

    Raises:
        MissingExtraError: `pyarrow` is not installed.
    """
    try:
        from pyarrow import parquet as files
        from pyarrow import types
    except ImportError as error:
        raise MissingExtraError("pyarrow", "datasets", "reading a parquet file") from error
    failure = "this is not a readable parquet file"

    def rows(columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        with files.ParquetFile(path) as file:
            schema = file.schema_arrow
            for name in columns:
                kind = schema.field(name).type
                kind = kind.value_type if types.is_dictionary(kind) else kind
                if not any(test(kind) for test in _readable(types)):
                    raise DataError(f"column {name!r} holds {str(kind)[:60]}, not text", where=path)
            for batch in file.iter_batches(_AT_ONCE, columns=list(columns)):
                yield from batch.to_pylist()

    def names() -> Iterator[Mapping[str, Any]]:
        with files.ParquetFile(path) as file:
            schema = file.schema_arrow
            yield {name: _sample(types, schema.field(name).type) for name in schema.names}

    (found,) = (first for _, first in numbered(str(path), names(), failure))
    return Table(str(path), tuple(found), found, lambda columns: numbered(str(path), rows(columns), failure))


def _readable(types: Any) -> list[Callable[[Any], bool]]:
    """Return tests of the Arrow types whose values are text, numbers that stand for themselves, or messages."""
    return [
        types.is_string, types.is_large_string, types.is_null, types.is_integer, types.is_list, types.is_large_list,
        types.is_struct,
    ]  # fmt: skip


def _sample(types: Any, kind: Any) -> Any:
    """Return something of the kind that values of an Arrow type have: a list, or nothing in particular."""
    return [] if types.is_list(kind) or types.is_large_list(kind) else None


def numbered(where: str, rows: Iterable[Mapping[str, Any]], failure: str) -> Iterator[Row]:
    """Yield rows with their numbers; what a library raises on the way becomes an error that names the last one."""
    number = 0
    try:
        for values in rows:
            number += 1
            yield f"{where}, record {number}", values
    except EdgetuneError:
        raise
    except Exception as error:  # Arrow's errors, wrong UTF-8, types that have no counterpart in Python
        reason = f"{failure}: {str(error)[:300]}"
        raise DataError(reason, where=f"{where}, after record {number}" if number else where) from error


READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": jsonl,
    ".ndjson": jsonl,
    ".json": json_file,
    ".csv": csv_file,
    ".tsv": partial(csv_file, delimiter="\t"),
    ".txt": text_file,
    ".parquet": parquet,
}
"""How a file is read, by its suffix."""
