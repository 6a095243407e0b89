"""What rows say, whatever their columns are called: a question and its answer, a conversation, a task, a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgetune.core.errors import DataError, nearest
from edgetune.data.conversations import checked_text, records_of
from edgetune.data.records import Message, Record

MAY_BE_EMPTY = ("context", "category", "system")
"""What a column mapping may leave out."""


@dataclass(frozen=True, slots=True)
class Cells:
    """A row by what its columns say.

    Args:
        row: column to value.
        named: what a record says, to names of columns that may say it; the first that is there does.
        place: where the row stands, for error messages.
    """

    row: Mapping[str, Any]
    named: Mapping[str, tuple[str, ...]]
    place: str

    def column(self, key: str) -> str:
        """Return the column that says something, or the first that could."""
        names = self.named.get(key, (key,))
        return next((name for name in names if name in self.row), names[0])

    def value(self, key: str) -> Any:
        """Return a value as it is, None where there is none."""
        return self.row.get(self.column(key)) if key in self.named else None

    def text(self, key: str, *, optional: bool = True) -> str:
        """Return a text; of several right answers the first, and a whole number in digits.

        Args:
            key: what a record says.
            optional: nothing is an empty text.

        Raises:
            DataError: it is none.
        """
        value, column = self.value(key), self.column(key)
        if isinstance(value, list) and value and isinstance(value[0], str):
            value = value[0]
        if value is None and optional:
            return ""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            hint = f"--columns {key}= leaves it out" if key in MAY_BE_EMPTY else None
            raise DataError(
                f"column {column!r} holds {type(value).__name__}, not text", where=self.place, hint=hint
            )
        return checked_text(value, f"column {column!r}", self.place)


Read = Callable[[Cells], list[Record]]


def _pair(cells: Cells) -> list[Record]:
    response = cells.text("response")
    if not response.strip():
        return []
    system = cells.text("system")
    history = (Message("system", system),) if system.strip() else ()
    asked = cells.text("instruction", optional=False)
    return [Record(asked, cells.text("context"), response, cells.text("category"), history)]


def _conversation(cells: Cells) -> list[Record]:
    return records_of(cells.value("messages"), cells.place, cells.text("category"), cells.text("system"))


def _task(cells: Cells) -> list[Record]:
    instances = cells.value("instances")
    if not isinstance(instances, list) or not all(isinstance(one, Mapping) for one in instances):
        raise DataError(f"column {cells.column('instances')!r} holds no list of instances", where=cells.place)
    shared = {"instruction": cells.text("instruction"), "category": cells.text("category")}
    names = {"context": ("input",), "response": ("output",)} | {key: (key,) for key in shared}
    made = list[Record]()
    for number, one in enumerate(instances, start=1):
        place = f"{cells.place}, instance {number}"
        require_columns(("input", "output"), one, place)
        made += _pair(Cells({**one, **shared}, names, place))
    return made


def _text(cells: Cells) -> list[Record]:
    text = cells.text("text")
    return [Record("", "", text, cells.text("category"), plain=True)] if text.strip() else []


@dataclass(frozen=True, slots=True)
class Kind:
    """What records are made of, whatever the columns are called.

    Args:
        read: makes the records of a row; none where there is nothing to train on.
        needed: what every row must say.
        optional: what it may say, to names of columns that do, the first that is there.
    """

    read: Read
    needed: tuple[str, ...]
    optional: Mapping[str, tuple[str, ...]]


_CATEGORY = {"category": ("category", "categories")}
_SYSTEM = {"system": ("system", "system_prompt")}
PAIR = Kind(_pair, ("instruction", "response"), {"context": ("context",), **_CATEGORY, **_SYSTEM})
CONVERSATION = Kind(_conversation, ("messages",), {**_CATEGORY, **_SYSTEM})
TASK = Kind(_task, ("instruction", "instances"), _CATEGORY)
TEXT = Kind(_text, ("text",), _CATEGORY)


def require_columns(columns: Iterable[str], present: Iterable[object], place: str) -> None:
    """Make sure that columns are there.

    Raises:
        DataError: at the first that is not, with those that are and the nearest name.
    """
    known = set(present)
    for column in columns:
        if column not in known:
            names = shown_names(known)
            near = nearest(column, names)
            hint = f"did you mean {near!r}?" if near else "name the column that is meant with --columns"
            found = ", ".join(names) or "none"
            raise DataError(f"no column {column!r}; the columns here are: {found}", where=place, hint=hint)


def shown_names(columns: Iterable[object]) -> list[str]:
    """Return names of columns as a person may read them: not too long, not too many."""
    names = [str(name)[:60].encode("utf-8", "backslashreplace").decode() for name in columns if name]
    return sorted(names)[:40]
