"""Where records come from: a file, a saved data set, or a data set on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError, MissingExtraError, nearest
from edgetune.data.tables import READERS, Table, numbered

FORMATS = f"a file ({', '.join(sorted(READERS))}), a folder from datasets.save_to_disk, or a Hugging Face dataset id"


def open_table(source: str | Path, subset: str) -> Table:
    """Open a file, a saved data set or a data set on the Hub.

    Args:
        source: as in `load_records`.
        subset: the split to read where a data set has several.

    Raises:
        DataError: nothing readable there; the message names the file and the line.
        MissingExtraError: an optional library is needed and not installed.
    """
    try:
        path = Path(source).expanduser()
        folder, file, exists = path.is_dir(), path.is_file(), path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null character, no such user
        raise DataError(f"no such file or folder: {str(error)[:200]}", hint=FORMATS) from error
    if folder:
        return _saved(path, subset)
    if file:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            kind = path.suffix or "a file without a suffix"
            raise DataError(f"cannot read {kind}", where=path, hint=FORMATS)
        return reader(path)
    if exists:
        raise DataError("this is a pipe or a device, not a file", where=path, hint=FORMATS)
    if isinstance(source, Path) or _looks_like_a_path(source):
        raise DataError("no such file or folder", where=path, hint=FORMATS)
    return _hub(source, subset)


def _looks_like_a_path(source: str) -> bool:
    suffixed = Path(source).suffix.lower() in READERS
    return (
        suffixed
        or source.startswith((".", "~", "/"))
        or "\\" in source
        or source.count("/") > 1
        or not source
    )


def _saved(path: Path, subset: str) -> Table:
    datasets = _datasets("reading a saved dataset")
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises many unrelated types
        what = f"this folder was not written by save_to_disk: {str(error)[:300]}"
        raise DataError(what, where=path, hint=FORMATS) from error
    return _table(loaded, subset, str(path))


def _hub(name: str, subset: str) -> Table:
    datasets = _datasets(f"fetching the dataset {name[:100]!r} from the Hugging Face Hub")
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises many unrelated types
        hint = "no such file here either; check the spelling and the network"
        what = f"cannot fetch this dataset from the Hugging Face Hub: {str(error)[:300]}"
        raise DataError(what, where=name[:100], hint=hint) from error
    return _table(loaded, subset, name)


def _datasets(purpose: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "datasets", purpose) from error
    return datasets


def _table(loaded: Any, subset: str, where: str) -> Table:
    chosen = _subset(loaded, subset, where)
    columns = tuple(map(str, chosen.column_names))
    kinds = getattr(chosen, "features", None) or {}
    lists = {name for name, kind in kinds.items() if isinstance(kind, list) or hasattr(kind, "feature")}
    first: dict[str, Any] = {name: [] if name in lists else None for name in columns}
    return Table(
        where,
        columns,
        first,
        lambda wanted: numbered(where, chosen.select_columns(list(wanted)), "this dataset cannot be read"),
    )


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
