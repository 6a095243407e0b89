"""Readers of record files and data sets: whatever the format, rows of columns with their place for error messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError, MissingExtraError, nearest

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands (for error messages) and its columns."""


def open_rows(source: str | Path, subset: str) -> Iterator[Row]:
    """Yield the rows of a file, a saved data set or a data set on the Hub, in order.

    Args:
        source: as in `load_records`.
        subset: the split to read where a data set has several.

    Raises:
        DataError: nothing readable there; the message names the file and the line.
        MissingExtraError: an optional library is needed and not installed.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _saved(path, subset)
    if path.is_file():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(
                f"cannot read {path.suffix or 'a file without a suffix'}", where=path, hint=_FORMATS
            )
        return reader(path)
    if isinstance(source, Path) or _looks_like_a_path(source):
        raise DataError("no such file or folder", where=path, hint=_FORMATS)
    return _hub(source, subset)


def _looks_like_a_path(source: str) -> bool:
    suffixed = Path(source).suffix.lower() in _READERS
    return (
        suffixed
        or source.startswith((".", "~", "/"))
        or "\\" in source
        or source.count("/") > 1
        or not source
    )


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig")
                value = json.loads(text) if text.strip() else {}
            except UnicodeDecodeError as error:
                raise DataError("this line is not UTF-8 text", where=place) from error
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(
                    f"this line is not JSON: {error}", where=place, hint="one object a line"
                ) from error
            if not isinstance(value, dict):
                raise DataError("this line is not a JSON object", where=place, hint="one object a line")
            if text.strip():
                yield place, value


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "datasets", "reading a parquet file") from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"this is not a readable parquet file: {error}", where=path) from error
    yield from _numbered(str(path), table.to_pylist())


def _saved(path: Path, subset: str) -> Iterator[Row]:
    datasets = _datasets("reading a saved dataset")
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises many unrelated types
        raise DataError(
            f"this folder was not written by save_to_disk: {error}", where=path, hint=_FORMATS
        ) from error
    yield from _numbered(str(path), _subset(loaded, subset, str(path)))


def _hub(name: str, subset: str) -> Iterator[Row]:
    datasets = _datasets(f"fetching the dataset {name!r} from the Hugging Face Hub")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises many unrelated types
        hint = "no such file here either; check the spelling and the network"
        raise DataError(
            f"cannot fetch this dataset from the Hugging Face Hub: {error}", where=name, hint=hint
        ) from error
    yield from _numbered(name, _subset(loaded, subset, name))


def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets", purpose) from error
    return datasets


def _subset(loaded: Any, subset: str, where: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(loaded, Mapping):
        return loaded  # type: ignore[no-any-return]
    if subset in loaded:
        return loaded[subset]  # type: ignore[no-any-return]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    found, near = ", ".join(map(str, loaded)), nearest(subset, map(str, loaded))
    raise DataError(
        f"no split {subset!r}; the splits here are: {found}",
        where=where,
        hint=None if near is None else f"did you mean {near!r}?",
    )


def _numbered(where: str, rows: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    for number, values in enumerate(rows, start=1):
        yield f"{where}, record {number}", values


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {".jsonl": _jsonl, ".parquet": _parquet}
_FORMATS = "a .jsonl file, a .parquet file, a folder from datasets.save_to_disk, or a Hugging Face dataset id"
