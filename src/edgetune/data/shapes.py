"""The shapes that instruction data come in: which columns say what, and what becomes of a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from edgetune.core.errors import DataError, nearest
from edgetune.data.kinds import (
    CONVERSATION,
    MAY_BE_EMPTY,
    PAIR,
    TASK,
    TEXT,
    Cells,
    Kind,
    require_columns,
    shown_names,
)
from edgetune.data.records import Record

Columns = Mapping[str, str | None]
"""What a record says, to the name of the column that says it; None or nothing where no column does."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape by the names of its columns.

    Args:
        name: how people know it.
        kind: what it holds.
        columns: those that say what the kind needs, in its order; lower case.
        context: names of the column beside an instruction, the first that is there.
        lists: whether the first column must hold lists.
        unless: names of columns with which a row says more than this shape would read.
    """

    name: str
    kind: Kind
    columns: tuple[str, ...]
    context: tuple[str, ...] = ("context",)
    lists: bool = False
    unless: tuple[str, ...] = ()

    def find(self, columns: Mapping[str, str], first: Mapping[str, Any], mapping: Columns) -> Fit | None:
        """Return how this shape fits a table, None if it does not.

        Args:
            columns: lower-case name to the name as it stands.
            first: a row, or something of the kinds of its values.
            mapping: what somebody said about them.
        """
        kind = self.kind
        if not mapping.keys() <= {*kind.needed, *kind.optional} or any(
            name in columns for name in self.unless
        ):
            return None
        named = {
            **{key: columns.get(name) for key, name in zip(kind.needed, self.columns, strict=True)},
            **mapping,
        }
        if not all(named[key] for key in kind.needed):
            return None
        if self.lists and not (mapping or isinstance(first.get(str(named[kind.needed[0]])), list)):
            return None
        given: dict[str, tuple[str, ...]] = {key: (name,) for key, name in named.items() if name}
        mapped = all(mapping.get(key) for key in kind.needed)
        for key, names in kind.optional.items():
            names = self.context if key == "context" and not mapped else names
            present = tuple(columns[name] for name in names if name in columns)
            if key not in mapping:
                given[key] = present[:1] or names  # rows that are objects need not all have the same columns
        return Fit("mapped columns" if mapped else self.name, kind, given)


@dataclass(frozen=True, slots=True)
class Fit:
    """A shape with the columns of a table.

    Args:
        name: of the shape.
        kind: what it holds.
        named: what a record says, to names of columns that may say it.
    """

    name: str
    kind: Kind
    named: Mapping[str, tuple[str, ...]]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that may be read."""
        return tuple(dict.fromkeys(chain.from_iterable(self.named.values())))

    def records(self, row: Mapping[str, Any], place: str) -> list[Record]:
        """Return the records of a row, none if there is nothing to train on.

        Raises:
            DataError: a column is missing or holds something else; names the place.
        """
        require_columns([self.named[key][0] for key in self.kind.needed], row, place)
        return self.kind.read(Cells(row, self.named, place))


_CHOICES = ("choices", "options")
_NI = "Super-NaturalInstructions"
SHAPES: tuple[Shape, ...] = (
    Shape("messages", CONVERSATION, ("messages",), lists=True),
    Shape("ShareGPT", CONVERSATION, ("conversations",), lists=True),
    Shape("ShareGPT", CONVERSATION, ("conversation",), lists=True),
    Shape(_NI, TASK, ("definition", "instances")),
    Shape(_NI, PAIR, ("definition", "targets"), context=("inputs",)),
    Shape(_NI, PAIR, ("definition", "output"), context=("input",)),
    Shape("Dolly", PAIR, ("instruction", "response"), context=("context", "input")),
    Shape("Alpaca", PAIR, ("instruction", "output"), context=("input", "context")),
    Shape("question and answer", PAIR, ("question", "answer"), unless=_CHOICES),
    Shape("question and answer", PAIR, ("question", "response"), unless=_CHOICES),
    Shape("prompt and completion", PAIR, ("prompt", "completion")),
    Shape("prompt and completion", PAIR, ("prompt", "response")),
    Shape("inputs and targets", PAIR, ("inputs", "targets")),
    Shape("input and output", PAIR, ("input", "output")),
    Shape("text and label", PAIR, ("text", "label")),
    Shape("text and label", PAIR, ("sentence", "label")),
    Shape("plain text", TEXT, ("text",)),
)
"""Every shape, in the order in which they are looked for."""

MAPPED = tuple(
    dict.fromkeys(key for kind in (PAIR, CONVERSATION, TEXT) for key in (*kind.needed, *kind.optional))
)
"""What a column mapping can name."""


def fit(columns: Sequence[str], first: Mapping[str, Any], mapping: Columns, where: str) -> Fit:
    """Say which shape a table has: the first of `SHAPES` whose columns are there, upper and lower case alike.

    Args:
        columns: all that are there.
        first: a row, or something of the kinds of its values.
        mapping: what somebody said about them; it goes before the names of a shape.
        where: the source, for error messages.

    Raises:
        DataError: a mapped column is not there, or no shape fits; says which columns there are and how to map them.
    """
    _check(mapping)
    require_columns([name for name in mapping.values() if name], columns, where)
    lower = {name.lower().strip(): name for name in reversed(columns)} | {name: name for name in columns}
    free = {key: name for key, name in lower.items() if name not in mapping.values()}
    found = next((one for shape in SHAPES if (one := shape.find(free, first, mapping)) is not None), None)
    if found is None:
        raise _unknown(columns, mapping, where)
    return found


def _check(mapping: Columns) -> None:
    for key, name in mapping.items():
        if key not in MAPPED:
            near = nearest(key, MAPPED)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(MAPPED)}"
            raise DataError(
                f"the column mapping names {key!r}, which no record has", where="data.columns", hint=hint
            )
        if not name and key not in MAY_BE_EMPTY:
            hint = f"only {', '.join(MAY_BE_EMPTY)} can"
            raise DataError(f"{key!r} cannot be left out", where="data.columns", hint=hint)


_OFTEN = {
    "instruction": ("question", "prompt", "query", "input", "inputs", "problem", "source", "utterance",
                    "sentence", "q"),
    "response": ("answer", "answers", "output", "completion", "target", "targets", "label", "reply", "solution",
                 "summary", "chosen", "a"),
}  # fmt: skip
"""What the two columns are often called."""


def _unknown(columns: Sequence[str], mapping: Columns, where: str) -> DataError:
    taken = {name for name in mapping.values() if name}
    known = dict(mapping)
    for key, others in _OFTEN.items():
        if key not in known:
            known[key] = _guess((key, *others), [name for name in columns if name not in taken])
            taken.add(str(known[key]))
    names = ", ".join(shown_names(columns)) or "none"
    what = f"cannot tell what is asked and what is answered; the columns here are: {names}"
    said = ",".join(f"{key}={name}" for key, name in known.items() if key != name)
    return DataError(what, where=where, hint=f"say it with --columns {said}")


def _guess(names: Sequence[str], columns: Sequence[str]) -> str:
    """Return the column that most likely has one of these meanings, or a word in capitals where none looks like it."""
    lower = {name.lower().strip(): name for name in columns}
    near = (found for name in names if (found := nearest(name, lower)))
    found = next((name for name in names if name in lower), None) or next(near, None)
    return shown_names([lower[found]])[0] if found else "COLUMN"
