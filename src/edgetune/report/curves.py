"""Figures of several runs: means by round or by size, with their standard deviations over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgetune.report import axis, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float, float]
"""Where, mean, standard deviation."""
COLOURS = (
    svg.BLUE,
    svg.ORANGE,
    svg.GREEN,
    "#cc79a7",
    "#8b6508",
    "#56b4e9",
    "#7a7a7a",
    "#5b3a8e",
    "#b8b000",
    "#a01c5c",
)
"""Of lines in their order; the eleventh begins again, dashed."""


def curves(name: str, lines: Mapping[str, Sequence[Point]], across: str, up: str) -> str:
    """Draw lines with bands of a standard deviation.

    Args:
        name: prefix of every id in the element.
        lines: points by label.
        across: title of the horizontal axis.
        up: title of the vertical one.

    Returns:
        An `<svg>` element.
    """

    def draw(axes: Axes) -> None:
        for index, (label, points) in enumerate(lines.items()):
            colour, dashed = COLOURS[index % len(COLOURS)], index >= len(COLOURS)
            x, mean, around = zip(*points, strict=True)
            low = [value - error for value, error in zip(mean, around, strict=True)]
            high = [value + error for value, error in zip(mean, around, strict=True)]
            axes.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(x, mean, "o--" if dashed else "o-", markersize=3, color=colour, label=label)
        axes.set(xlabel=across, ylabel=up)
        axis.legend(axes)

    return svg.drawn(name, 3.4, draw)


def bars_of_error(name: str, points: Sequence[Point], across: str, up: str) -> str:
    """Draw means with bars of a standard deviation over a logarithmic axis of sizes; as `curves` otherwise."""

    def draw(axes: Axes) -> None:
        x, mean, around = zip(*points, strict=True)
        axes.errorbar(x, mean, around, fmt="o-", markersize=4, capsize=4, color=svg.BLUE)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(x), [f"{size:g}" for size in x])
        axes.minorticks_off()
        axes.set(xlabel=across, ylabel=up)

    return svg.drawn(name, 3.2, draw)
