"""The instruction record every data source yields, and the readers that yield it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edgetune.core.errors import DataError, nearest
from edgetune.data.sources import open_rows


@dataclass(frozen=True, slots=True)
class Record:
    """One instruction with its answer, in Dolly's schema.

    Args:
        instruction: What the user asks.
        context: Text the answer may rely on; empty when there is none.
        response: The reference answer.
        category: One of Dolly's category names, such as ``closed_qa``.

    """

    instruction: str
    context: str
    response: str
    category: str


FIELDS = tuple(field.name for field in fields(Record))
LONGEST = 1_000_000
"""Characters of a record: of a longer one less than a thousandth would be used, and tokenising it takes gigabytes."""
_MAY_BE_NULL = frozenset({"context"})


def load_records(
    source: str | Path, *, columns: Mapping[str, str | None] | None = None, subset: str = "train"
) -> list[Record]:
    """Read instruction records from a file, a saved dataset or the Hugging Face Hub.

    Args:
        source: a `.jsonl` file (Dolly's layout), a `.parquet` file, a folder written by
            `datasets.save_to_disk`, or the id of a dataset on the Hub. A `Path` is never taken for an id.
        columns: record field to column name, for data with other names, e.g. `{"context": "input"}`. A field
            mapped to None is left empty (allowed for `context` and `category`). Fields not named keep their name.
        subset: the split to read where a dataset has several; a dataset with one split yields that one.

    Returns:
        The records in file order, never empty. A null context counts as no context.

    Raises:
        DataError: no such file; a broken line; a missing column; a value that is not text; an empty response; a
            record of more than `LONGEST` characters; no records at all. The message names the file and the line.
        MissingExtraError: a parquet file or a dataset, and `datasets` is not installed.
    Cost: the whole source in memory.
    """
    wanted = _wanted_columns(columns or {})
    needed = list(dict.fromkeys(column for column in wanted.values() if column is not None))
    records = [_record(values, wanted, place) for place, values in open_rows(source, subset, needed)]
    if not records:
        raise DataError("there are no records here", where=source)
    return records


def records_digest(records: Iterable[Record]) -> str:
    """SHA-256 over the records in order, as hexadecimal digits.

    digest = sha256( line_1 line_2 ... ),   line = JSON [instruction, context, response, category] + newline
    """
    digest = hashlib.sha256()
    for record in records:
        line = json.dumps(
            [getattr(record, name) for name in FIELDS], ensure_ascii=False, separators=(",", ":")
        )
        digest.update(line.encode("utf-8") + b"\n")
    return digest.hexdigest()


def _wanted_columns(columns: Mapping[str, str | None]) -> dict[str, str | None]:
    for field, column in columns.items():
        if field not in FIELDS:
            raise DataError(
                f"the column mapping names {field!r}, which is not a record field", hint=_near(field, FIELDS)
            )
        if column is None and field not in ("context", "category"):
            raise DataError(f"the field {field!r} cannot be left out", hint="only context and category can")
    return {field: columns.get(field, field) for field in FIELDS}


def _record(values: Mapping[str, Any], wanted: Mapping[str, str | None], place: str) -> Record:
    texts = {}
    for field, column in wanted.items():
        if column is None:
            texts[field] = ""
            continue
        texts[field] = _text(values[column], field, column, place)
    if not texts["response"].strip():
        raise DataError("the response is empty", where=place, hint="leave such records out")
    length = sum(map(len, texts.values()))
    if length > LONGEST:
        what = f"a record of {length:,} characters, more than {LONGEST:,}"
        raise DataError(what, where=place, hint="shorten it: at most data.max_tokens tokens of it are used")
    return Record(**texts)


def _text(value: Any, field: str, column: str, place: str) -> str:
    if value is None and field in _MAY_BE_NULL:
        return ""
    if not isinstance(value, str):
        raise DataError(f"column {column!r} holds {type(value).__name__}, not text", where=place)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"column {column!r} is not valid Unicode text ({error.reason})", where=place
        ) from error
    return value


def _near(name: str, known: Iterable[str]) -> str:
    found = nearest(name, known)
    return f"did you mean {found!r}?" if found else f"give a column mapping for {name!r}"
