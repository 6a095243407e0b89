"""Readers of record files and data sets: whatever the format, rows of columns with their place for error messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from edgetune.core.errors import DataError, EdgetuneError, MissingExtraError, nearest

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands (for error messages) and its columns, at least those that were asked for."""

LONGEST_LINE = 32 << 20
"""Bytes of a line of JSON."""
_AT_ONCE = 1024
"""Rows of a parquet file in memory at a time."""


def open_rows(source: str | Path, subset: str, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a file, a saved data set or a data set on the Hub, in order.

    Args:
        source: as in `load_records`.
        subset: the split to read where a data set has several.
        columns: what every row must have; a parquet file or a data set is asked for no other column.

    Raises:
        DataError: nothing readable there; the message names the file and the line.
        MissingExtraError: an optional library is needed and not installed.
    """
    try:
        path = Path(source).expanduser()
        folder, file, exists = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null character, no such user
        raise DataError(f"no such file or folder: {str(error)[:200]}", hint=_FORMATS) from error
    if folder:
        return _saved(path, subset, columns)
    if file:
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            kind = path.suffix or "a file without a suffix"
            raise DataError(f"cannot read {kind}", where=path, hint=_FORMATS)
        return reader(path, columns)
    if exists:
        raise DataError("this is a pipe or a device, not a file", where=path, hint=_FORMATS)
    if isinstance(source, Path) or _looks_like_a_path(source):
        raise DataError("no such file or folder", where=path, hint=_FORMATS)
    return _hub(source, subset, columns)


def require_columns(columns: Iterable[str], present: Iterable[object], place: str) -> None:
    """Make sure that columns are there.

    Raises:
        DataError: at the first that is not, with those that are and the nearest name.
    """
    known = set(present)
    for column in columns:
        if column not in known:
            names = [str(name)[:60].encode("utf-8", "backslashreplace").decode() for name in known if name]
            names = sorted(names)[:40]
            near = nearest(column, names)
            hint = f"did you mean {near!r}?" if near else f"give a column mapping for {column!r}"
            found = ", ".join(names) or "none"
            raise DataError(f"no column {column!r}; the columns here are: {found}", where=place, hint=hint)


def _looks_like_a_path(source: str) -> bool:
    suffixed = Path(source).suffix.lower() in _READERS
    return (
        suffixed
        or source.startswith((".", "~", "/"))
        or "\\" in source
        or source.count("/") > 1
        or not source
    )


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            for place, value in _objects(path, file):
                require_columns(columns, value, place)
                yield place, value
    except OSError as error:
        raise DataError("cannot read this file", where=path, hint=error.strerror) from error


def _objects(path: Path, file: BinaryIO) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        place = f"{path}, line {number}"
        if len(line) > LONGEST_LINE:
            raise DataError(f"this line has more than {LONGEST_LINE:,} bytes", where=place, hint=_A_LINE)
        try:
            text = line.decode("utf-8-sig")
            value = json.loads(text) if text.strip() else {}
        except UnicodeDecodeError as error:
            raise DataError("this line is not UTF-8 text", where=place) from error
        except (
            ValueError,
            RecursionError,
        ) as error:  # not JSON, a number of thousands of digits, deep nesting
            raise DataError(
                f"this line is not JSON: {str(error)[:200]}", where=place, hint=_A_LINE
            ) from error
        if not isinstance(value, dict):
            raise DataError("this line is not a JSON object", where=place, hint=_A_LINE)
        if text.strip():
            yield place, value


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    try:
        from pyarrow import parquet, types
    except ImportError as error:
        raise MissingExtraError("pyarrow", "datasets", "reading a parquet file") from error

    def rows() -> Iterator[Mapping[str, Any]]:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            require_columns(columns, schema.names, str(path))
            for name in columns:
                kind = schema.field(name).type
                kind = kind.value_type if types.is_dictionary(kind) else kind
                if not (types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind)):
                    raise DataError(f"column {name!r} holds {str(kind)[:60]}, not text", where=path)
            for batch in file.iter_batches(_AT_ONCE, columns=list(columns)):
                yield from batch.to_pylist()

    yield from _numbered(str(path), rows(), "this is not a readable parquet file")


def _saved(path: Path, subset: str, columns: Sequence[str]) -> Iterator[Row]:
    datasets = _datasets("reading a saved dataset")
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises many unrelated types
        what = f"this folder was not written by save_to_disk: {str(error)[:300]}"
        raise DataError(what, where=path, hint=_FORMATS) from error
    yield from _rows_of(loaded, subset, str(path), columns)


def _hub(name: str, subset: str, columns: Sequence[str]) -> Iterator[Row]:
    datasets = _datasets(f"fetching the dataset {name[:100]!r} from the Hugging Face Hub")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises many unrelated types
        hint = "no such file here either; check the spelling and the network"
        what = f"cannot fetch this dataset from the Hugging Face Hub: {str(error)[:300]}"
        raise DataError(what, where=name[:100], hint=hint) from error
    yield from _rows_of(loaded, subset, name, columns)


def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets", purpose) from error
    return datasets


def _rows_of(loaded: Any, subset: str, where: str, columns: Sequence[str]) -> Iterator[Row]:
    chosen = _subset(loaded, subset, where)
    require_columns(columns, chosen.column_names, where)
    return _numbered(where, chosen.select_columns(list(columns)), "this dataset cannot be read")


def _subset(loaded: Any, subset: str, where: str) -> Any:
    if not isinstance(loaded, Mapping):
        return loaded
    if subset in loaded:
        return loaded[subset]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    found, near = ", ".join(map(str, loaded)), nearest(subset, map(str, loaded))
    raise DataError(
        f"no split {subset!r}; the splits here are: {found}",
        where=where,
        hint=None if near is None else f"did you mean {near!r}?",
    )


def _numbered(where: str, rows: Iterable[Mapping[str, Any]], failure: str) -> Iterator[Row]:
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


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {".jsonl": _jsonl, ".parquet": _parquet}
_FORMATS = "a .jsonl file, a .parquet file, a folder from datasets.save_to_disk, or a Hugging Face dataset id"
_A_LINE = "one object a line"
