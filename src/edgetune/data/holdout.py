"""What no device sees: records set aside for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgetune.core.errors import ConfigError, DataError, nearest
from edgetune.data.records import Record
from edgetune.data.streams import stream

Indices = tuple[int, ...]


def hold_out(
    records: Sequence[Record], *, category: str | None = None, count: int | None = None, seed: int
) -> tuple[Indices, Indices]:
    """Set records aside for evaluation, as (positions to train on, positions held out).

    With `category`, no record of it is trained on (FedKSeed's protocol: Dolly's `summarization`); a `count` beside it
    evaluates on that many of them, drawn at random. Without it, `count` records drawn at random are held out.

    Args:
        records: all records.
        category: the category no device sees.
        count: number of records to evaluate on, at least 1.
        seed: not negative; used where records are drawn.

    Returns:
        Two ascending tuples without common positions; together all records, except where both options are given.

    Raises:
        ConfigError: neither option given, or count below 1.
        DataError: no such category (with the nearest name), too few records, or nothing left to train on.
    """
    if category is None and count is None:
        raise ConfigError("nothing says what to hold out", hint="give a category, a count or both")
    if count is not None and count < 1:
        raise ConfigError(f"cannot hold out {count} records", hint="give at least 1")
    aside = np.arange(len(records))
    if category is not None:
        aside = np.array(
            [i for i, record in enumerate(records) if record.category == category], dtype=np.int64
        )
        if not len(aside):
            raise _unknown_category(category, sorted({record.category for record in records}))
    chosen = aside
    if count is not None:
        if count > len(aside):
            raise DataError(f"cannot hold out {count} of {len(aside)} records", hint="give a smaller count")
        chosen = stream(seed, "hold-out").permutation(aside)[:count]
    unseen = set((chosen if category is None else aside).tolist())
    train = tuple(i for i in range(len(records)) if i not in unseen)
    if not train:
        raise DataError("nothing is left to train on", hint="hold out fewer records")
    return train, tuple(np.sort(chosen).tolist())


def _unknown_category(category: str, known: list[str]) -> DataError:
    found = nearest(category, known)
    hint = f"did you mean {found!r}?" if found else None
    return DataError(f"no record has the category {category!r}; there are: {', '.join(known)}", hint=hint)
