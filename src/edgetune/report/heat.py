"""A heat map of methods: one row a method, one column a figure, darker is better within a column."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetune.report import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 0.32
"""Inches a row."""


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of every row.

    Args:
        title: above the column.
        key: of the rows.
        write: a number as text.
        more: larger is better.
        logarithmic: shades go by the logarithm, for figures of different size.
    """

    title: str
    key: str
    write: Callable[[float], str]
    more: bool = False
    logarithmic: bool = False


def heat_map(name: str, rows: Mapping[str, Mapping[str, float | None]], columns: Sequence[Column]) -> str:
    """Draw the map.

    Args:
        name: prefix of every id in the element.
        rows: by method, figures by key; None or NaN leaves a cell empty.
        columns: from left to right.

    Returns:
        An `<svg>` element.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    shades = [shades_of([row[column.key] for row in rows.values()], column) for column in columns]

    def draw(axes: Axes) -> None:
        axes.set(xlim=(0, len(columns)), ylim=(len(rows), 0))
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.xaxis.tick_top()
        axes.set_xticks([at + 0.5 for at in range(len(columns))], [column.title for column in columns])
        axes.set_yticks([at + 0.5 for at in range(len(rows))], list(rows))
        axes.tick_params(length=0)
        for y, row in enumerate(rows.values()):
            for x, column in enumerate(columns):
                shade, value = shades[x][y], row[column.key]
                if shade is None or value is None:
                    continue
                axes.axvspan(
                    x, x + 1, 1 - (y + 1) / len(rows), 1 - y / len(rows), alpha=0.6 * shade, color=svg.BLUE
                )
                axes.text(x + 0.5, y + 0.5, column.write(value), ha="center", va="center")

    return svg.drawn(name, 0.7 + HEIGHT * len(rows), draw)


def shades_of(values: Sequence[float | None], column: Column) -> list[float | None]:
    """Return how good each value is among its column's, from 0 to 1; None where there is none.

    shade = (worst - x) / (worst - best), of logarithms if the column says so; 1 if all are alike
    """
    there = [None if value is None or not math.isfinite(value) else value for value in values]
    scaled = [
        None if value is None else math.log(max(value, 1.0)) if column.logarithmic else value
        for value in there
    ]
    known = [value for value in scaled if value is not None]
    if not known:
        return there
    low, high = min(known), max(known)
    if low == high:
        return [None if value is None else 1.0 for value in scaled]
    up = [None if value is None else (value - low) / (high - low) for value in scaled]
    return up if column.more else [None if value is None else 1 - value for value in up]
