"""A figure of what attacks find: one row a method, marks with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgetune.report import axis, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Share = tuple[float, float]
"""Mean and standard error."""
MARKS = ((svg.BLUE, "o"), (svg.ORANGE, "s"), (svg.GREEN, "^"))


def shares(
    name: str, rows: Mapping[str, Sequence[Share | None]], labels: Sequence[str], chance: float, across: str
) -> str:
    """Draw shares in [0, 1] by row, and a line where chance is.

    Args:
        name: prefix of every id in the element.
        rows: by label, one share a series; None where there is none.
        labels: of the series, at most three.
        chance: share of the first series that a guess finds.
        across: title of the horizontal axis.

    Returns:
        An `<svg>` element.
    """

    def draw(axes: Axes) -> None:
        for series, (label, (colour, mark)) in enumerate(zip(labels, MARKS, strict=False)):
            found = [(place, row[series]) for place, row in enumerate(rows.values())]
            known = [(place, *share) for place, share in found if share is not None]
            places, means, errors = zip(*known, strict=True) if known else ((), (), ())
            axes.errorbar(
                means, [place + 0.16 * (series - (len(labels) - 1) / 2) for place in places], xerr=errors,
                fmt=mark, markersize=5, capsize=3, color=colour, label=label, linestyle="none",
            )  # fmt: skip
        axes.axvline(chance, color=svg.INK, linestyle="--", linewidth=1)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xticks([place / 4 for place in range(5)], [f"{25 * place} %" for place in range(5)])
        axes.set_xlabel(across)
        axis.label_rows(axes, list(rows))
        axis.legend(axes)

    return svg.drawn(name, 0.7 + 0.36 * len(rows), draw)
