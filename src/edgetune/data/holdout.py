"""What no device sees: records set aside for evaluation, and the copies of them that must not be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgetune.core.errors import ConfigError, DataError, nearest
from edgetune.data.records import Record
from edgetune.data.streams import stream

Indices = tuple[int, ...]
Text = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Division:
    """Positions of records, ascending and without common ones.

    Args:
        train: for the devices.
        held_out: for evaluation.
        copies: neither: the same text as a record that is held out.
    """

    train: Indices
    held_out: Indices
    copies: Indices = ()


def text_of(record: Record) -> Text:
    """Return what makes two records the same one: instruction, context and response, whatever their white space."""
    return (_words(record.instruction), _words(record.context), _words(record.response))


def same_texts(records: Sequence[Record], order: Iterable[int]) -> list[list[int]]:
    """Group positions by text: the groups in the order of their first positions, each in the order given."""
    groups: dict[Text, list[int]] = {}
    for index in order:
        groups.setdefault(text_of(records[index]), []).append(index)
    return list(groups.values())


def hold_out(
    records: Sequence[Record],
    *,
    category: str | None = None,
    count: int | None = None,
    seed: int,
    training: bool = True,
) -> Division:
    """Set records aside for evaluation, and leave copies of them out of training.

    With `category`, no record of it is trained on (FedKSeed's protocol: Dolly's `summarization`); a `count` beside it
    evaluates on that many of them, drawn at random. Without it, `count` records drawn at random are held out. Drawn
    records all have different texts, and no record with the text of one that is held out is trained on.

    Args:
        records: all records.
        category: the category no device sees.
        count: number of records to evaluate on, at least 1.
        seed: not negative; used where records are drawn.
        training: something must be left to train on.

    Returns:
        Together all records, except where both options are given.

    Raises:
        ConfigError: neither option given, or count below 1.
        DataError: no such category (with the nearest name), too few records or texts, or nothing left to train on.
    Cost: one pass over all texts.
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
    chosen: list[int] = aside.tolist()
    if count is not None:
        if count > len(aside):
            raise DataError(f"cannot hold out {count} of {len(aside)} records", hint="give a smaller count")
        order = stream(seed, "hold-out").permutation(aside).tolist()
        chosen = [same[0] for same in same_texts(records, order)][:count]
        if len(chosen) < count:
            what = (
                f"cannot hold out {count} different records: these {len(aside)} are copies of {len(chosen)}"
            )
            raise DataError(what, hint="give a smaller count")
    unseen = set(chosen) if category is None else set(aside.tolist())
    texts = {text_of(records[index]) for index in unseen}
    others = [index for index in range(len(records)) if index not in unseen]
    copies = tuple(index for index in others if text_of(records[index]) in texts)
    train = tuple(sorted(set(others) - set(copies)))
    if training and not train:
        raise DataError("nothing is left to train on", hint="hold out fewer records")
    return Division(train, tuple(sorted(chosen)), copies)


def _words(text: str) -> str:
    return " ".join(text.split())


def _unknown_category(category: str, known: list[str]) -> DataError:
    found = nearest(category, known)
    hint = f"did you mean {found!r}?" if found else None
    return DataError(f"no record has the category {category!r}; there are: {', '.join(known)}", hint=hint)
