"""Turn a matplotlib figure into an SVG that lives inside a page: its colours and fonts are the page's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetune.core.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GRID = "#010203", "#040506"
"""Placeholders that become the page's text and line colours."""
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
"""Okabe and Ito's palette, told apart with every common colour blindness."""
RED = "#b3261e"
"""What a person should look at."""

_COLOURS = {
    INK: "currentColor",
    GRID: "var(--rule)",
    BLUE: f"var(--c1, {BLUE})",
    ORANGE: f"var(--c2, {ORANGE})",
    GREEN: f"var(--c3, {GREEN})",
    RED: f"var(--bad, {RED})",
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}
WIDTH = 6.0
"""Inches; narrow enough that labels are still readable on a telephone."""


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure: where it belongs, what it says, and the drawing."""

    name: str
    title: str
    svg: str


def drawn(name: str, height: float, draw: Callable[[Axes], None]) -> str:
    """Draw one pair of axes and return it as an `<svg>` element.

    Args:
        name: prefix of every id in the element, so that several fit into one page.
        height: of the figure, inches.
        draw: fills the axes.

    Returns:
        SVG with text as text, the same for the same data; no XML header, no metadata, no date.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plots", "a figure") from error
    written = io.StringIO()
    style: Any = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure.add_subplot())
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", metadata=no_metadata)
    return _inline(written.getvalue(), name)


def _inline(text: str, name: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # A style element inside an SVG applies to the whole page that holds it.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    # The page sets the font.
    text = re.sub(r"font-family: [^;\"]*; ", "", text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    for placeholder, colour in _COLOURS.items():
        text = text.replace(placeholder, colour)
    return text.strip()
