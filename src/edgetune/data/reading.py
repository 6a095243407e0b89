"""From any source and shape to records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgetune.core.errors import DataError
from edgetune.data.records import LONGEST, Record
from edgetune.data.shapes import Columns, fit
from edgetune.data.sources import open_table


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source holds.

    Args:
        records: in order, never empty.
        shape: how people know the shape of its rows.
        rows: how many there were.
        empty: rows with nothing to train on, which are left out.
    """

    records: list[Record]
    shape: str
    rows: int
    empty: int


def load_records(
    source: str | Path, *, columns: Columns | None = None, subset: str = "train"
) -> list[Record]:
    """Return the records of `load_source` alone."""
    return load_source(source, columns=columns, subset=subset).records


def load_source(source: str | Path, *, columns: Columns | None = None, subset: str = "train") -> Loaded:
    """Read records from a file, a saved dataset or the Hugging Face Hub, in any shape of `shapes.SHAPES`.

    Args:
        source: a file with a suffix of `tables.READERS`, a folder written by `datasets.save_to_disk`, or the id of a
            dataset on the Hub. A `Path` is never taken for an id.
        columns: what a record says (`shapes.MAPPED`) to column name, for data with other names, e.g.
            `{"context": "input"}`; None or an empty name for what no column says.
        subset: the split to read where a dataset has several; a dataset with one split yields that one.

    Returns:
        The records in the order of the rows. A conversation makes one record an answer.

    Raises:
        DataError: no such file; a broken line; columns of no known shape; a value that is not text; a record of more
            than `LONGEST` characters; no records at all, or none with anything to train on. The message names the file
            and the line.
        MissingExtraError: a parquet file or a dataset, and `datasets` is not installed.
    Cost: the whole source in memory.
    """
    table = open_table(source, subset)
    found = fit(table.columns, table.first, columns or {}, table.where)
    records, rows, empty = list[Record](), 0, list[str]()
    for place, row in table.rows([name for name in found.columns if name in table.columns]):
        rows += 1
        made = found.records(row, place)
        longest = max((one.characters for one in made), default=0)
        if longest > LONGEST:
            what = f"a record of {longest:,} characters, more than {LONGEST:,}"
            raise DataError(
                what, where=place, hint="shorten it: at most data.max_tokens tokens of it are used"
            )
        if not made:
            empty.append(place)
        records += made
    if empty and not records:
        raise DataError("the response is empty", where=empty[0], hint="there is nothing to train on")
    if not records:
        raise DataError("there are no records here", where=source)
    return Loaded(records, found.name, rows, len(empty))
