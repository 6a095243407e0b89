"""What no device sees: records set aside for evaluation, and the copies of them that must not be trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from edgetune.core.errors import ConfigError, DataError, nearest
from edgetune.data.records import Record
from edgetune.data.streams import stream

Indices = tuple[int, ...]
Text = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Division:
    """Positions of records, ascending and without common ones.

    Args:
        train: for the devices.
        held_out: for evaluation.
        copies: neither: the same text as a record that is held out, or of the same conversation.
    """

    train: Indices
    held_out: Indices
    copies: Indices = ()


def text_of(record: Record) -> Text:
    """Return what makes two records the same one: all its texts, whatever their white space."""
    return tuple(_words(text) for text in record.texts)


def together(records: Sequence[Record], order: Iterable[int]) -> list[list[int]]:
    """Group positions by conversation: the groups in the order of their first positions, each in the order given."""
    groups: dict[str | int, list[int]] = {}
    for index in order:
        groups.setdefault(records[index].conversation or index, []).append(index)
    return list(groups.values())


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
    records all have different texts, and no record with the text of one that is held out is trained on, nor one of the
    same conversation; records of one conversation are drawn together.

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
            raise DataError(f"cannot hold out {count} of {len(aside)} records", hint="lower data.held_out")
        order = chain.from_iterable(together(records, stream(seed, "hold-out").permutation(aside).tolist()))
        chosen = [same[0] for same in same_texts(records, order)][:count]
        if len(chosen) < count:
            what = (
                f"cannot hold out {count} different records: these {len(aside)} are copies of {len(chosen)}"
            )
            raise DataError(what, hint="lower data.held_out")
    unseen = set(chosen) if category is None else set(aside.tolist())
    return set_apart(records, sorted(chosen), unseen=unseen, training=training)


def set_apart(
    records: Sequence[Record], held_out: Sequence[int], *, unseen: Collection[int] = (), training: bool = True
) -> Division:
    """Divide records of which some are held out, and leave copies of them out of training.

    Args:
        records: all records.
        held_out: positions of those to evaluate on, ascending.
        unseen: positions of those that must not be trained on besides.
        training: something must be left to train on.

    Raises:
        DataError: nothing is.
    """
    kept = {*held_out, *unseen}
    texts = {text_of(records[index]) for index in kept}
    talks = {records[index].conversation for index in kept} - {""}
    others = [index for index in range(len(records)) if index not in kept]
    copies = tuple(
        index for index in others if records[index].conversation in talks or text_of(records[index]) in texts
    )
    train = tuple(sorted(set(others) - set(copies)))
    if training and not train:
        what = f"nothing is left to train on: of {len(records)} records {len(kept)} are held out"
        same = f" and {len(copies)} are copies of those" if copies else ""
        raise DataError(what + same, hint="hold out fewer (data.held_out)")
    return Division(train, tuple(held_out), copies)


def _words(text: str) -> str:
    return " ".join(text.split())


def _unknown_category(category: str, known: list[str]) -> DataError:
    if known in ([], [""]):
        hint = "--columns category=COLUMN names the column"
        return DataError(f"no record has the category {category!r}, nor any other", hint=hint)
    found = nearest(category, known)
    hint = f"did you mean {found!r}?" if found else "--columns category=COLUMN names another column"
    return DataError(f"no record has the category {category!r}; there are: {', '.join(known)}", hint=hint)
