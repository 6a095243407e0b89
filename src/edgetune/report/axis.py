"""Marks and labels that several figures share."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edgetune.report import svg, units

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def bars(
    axes: Axes, rows: Sequence[tuple[str, float]], own: int, write: Callable[[float], str], label: str
) -> None:
    """Draw one horizontal bar a row with its value beside it; rows from `own` on are alternatives."""
    colours = [svg.BLUE if index < own else svg.ORANGE for index in range(len(rows))]
    axes.barh(range(len(rows)), [value for _, value in rows], 0.6, color=colours)
    for index, (_, value) in enumerate(rows):
        beside(axes, write(value), value, index)
    axes.set_xlim(0, 1.2 * max(value for _, value in rows) or 1.0)
    axes.xaxis.set_major_formatter(tick(units.size_unrounded if write is units.size else units.plain))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(label)
    label_rows(axes, [row[0] for row in rows])


def tick(write: Callable[[float], str]) -> Callable[[float, float], str]:
    """Label ticks by where they are: with all the decimals that say something, and no others."""
    return lambda value, _: write(value)


def beside(axes: Axes, text: str, x: float, y: float, gap: float = 4) -> None:
    """Write a value at the end of its bar, or beside its mark."""
    axes.annotate(text, (x, y), xytext=(gap, 0), textcoords="offset points", va="center")


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name horizontal bars, the first at the top."""
    axes.set_yticks(range(len(names)), [textwrap.fill(name, 30, break_long_words=False) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.invert_yaxis()


def whole_ticks(axes: Axes) -> None:
    """Keep the ticks of a count on whole numbers."""
    axes.locator_params(axis="x", integer=True)


def legend(axes: Axes) -> None:
    """Put the legend above the axes, where it hides nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
