"""Lists of words on the terminal: broken between words at its width, whole lines in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

NARROWEST = 30
"""Columns that are left for words beside their labels; a narrower terminal breaks lines itself."""


def heading(console: Console, name: str, rest: str = "") -> None:
    """Print a name in bold and what follows it, later lines indented."""
    paragraph(console, Text.assemble((name, "bold"), rest))


def paragraph(console: Console, text: Text | str, indent: int = 0) -> None:
    """Print words; in a pipe they stay on one line.

    Args:
        console: where to print.
        text: plain, or styled.
        indent: columns before every line.
    """
    words = text if isinstance(text, Text) else Text(text)
    if not console.is_terminal or console.width < indent + NARROWEST:
        console.print(Text(" " * indent) + words, soft_wrap=True, highlight=False)
    else:
        console.print(Padding(words, (0, 0, 0, indent)), highlight=False)


def fields(console: Console, rows: Iterable[tuple[str, Text | str]], indent: int = 4) -> None:
    """Print labels with words beside them, aligned.

    Args:
        console: where to print.
        rows: label and text, plain or styled.
        indent: columns before the labels.
    """
    told = [(label, text if isinstance(text, Text) else Text(text)) for label, text in rows]
    if console.is_terminal and not _narrow(console, told, indent):
        console.print(Padding(grid(console, told), (0, 0, 0, indent)), highlight=False)
        return
    longest = max((len(label) for label, _ in told), default=0)
    for label, text in told:
        line = Text.assemble(" " * indent, (f"{label:<{longest}}", "dim"), " ") + text
        console.print(line, soft_wrap=True, highlight=False)


def grid(console: Console, rows: Sequence[tuple[str, Text]]) -> Table | Group:
    """Return labels with words beside them, aligned where there is room, as something that can be drawn again."""
    if _narrow(console, rows):
        return Group(*(Text.assemble((label, "dim"), " ") + text for label, text in rows))
    made = Table.grid(padding=(0, 1, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for label, text in rows:
        made.add_row(label, text)
    return made


def _narrow(console: Console, rows: Sequence[tuple[str, Text]], indent: int = 0) -> bool:
    longest = max((len(label) for label, _ in rows), default=0)
    return console.width < indent + longest + NARROWEST
