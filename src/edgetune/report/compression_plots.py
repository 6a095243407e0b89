"""The figures of a compression: matrix by matrix, and size against divergence beside rivals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from edgetune.core.events import LayerCompressed
from edgetune.report import axis, svg, units
from edgetune.report.rivals import Rival
from edgetune.report.summary import Summary
from edgetune.report.svg import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def in_trouble(layers: Sequence[LayerCompressed]) -> list[bool]:
    """Say of every matrix whether it fell back to rounding, or needed more damping than the least of its run."""
    asked = min((layer.damping for layer in layers if layer.damping > 0), default=math.inf)
    return [layer.fallback or layer.damping > asked for layer in layers]


def layer_errors(summary: Summary) -> Plot | None:
    """Draw each matrix's relative output error, solved and merely rounded; red where the solver was in trouble."""
    found = [
        (layer.error, layer.rounding_error, bad)
        for layer, bad in zip(summary.layers, in_trouble(summary.layers), strict=True)
        if 0 < layer.error < math.inf and 0 < layer.rounding_error < math.inf
    ]
    if not found:
        return None
    values = [value for error, rounding, _ in found for value in (error, rounding)]
    # Within one decade a logarithmic axis has no or one major tick: the minor ones must speak.
    narrow = max(values) < 10 * min(values)

    def draw(axes: Axes) -> None:
        places = range(1, len(found) + 1)
        axes.vlines(places, [one[0] for one in found], [one[1] for one in found], color=svg.GRID)
        axes.plot(places, [one[1] for one in found], "x", color=svg.ORANGE, label="rounded to nearest")
        for bad, colour, label in ((False, svg.BLUE, "solved"), (True, svg.RED, "fell back or damped more")):
            mine = [(place, one[0]) for place, one in zip(places, found, strict=True) if one[2] is bad]
            if mine:
                x, y = zip(*mine, strict=True)
                axes.plot(x, y, "o", markersize=4, color=colour, label=label)
        axes.set_yscale("log")
        axes.grid(False, axis="x")
        axes.set(xlabel="matrix, in the order of the model", ylabel="relative output error, logarithmic")
        axis.whole_ticks(axes)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(
            lambda value, _: f"{value:g}" if narrow and f"{value:e}"[0] in "235" else ""
        )
        axis.legend(axes)

    left = median(error / rounding for error, rounding, _ in found)
    matrices = f"{len(found)} matrices" if len(found) > 1 else "1 matrix"
    title = f"Error after solving is {left:.1%} of rounding's in the median of {matrices}"
    red = sum(bad for *_, bad in found)
    title += f"; {red} fell back or needed more damping" if red else ""
    return Plot("layer-errors", title, svg.drawn("layer-errors", 3.2, draw))


def size_against_divergence(summary: Summary, rivals: Sequence[Rival]) -> Plot | None:
    """Draw mean KL to the model before compression over the size of the file, own stages beside rivals."""
    own = [
        Rival(stage.name, stage.size_bytes, stage.kl)
        for stage in summary.stages
        if stage.kl is not None and 0 < stage.kl < math.inf and stage.size_bytes > 0
    ]
    if not own or len(own) + len(rivals) < 2:
        return None

    def draw(axes: Axes) -> None:
        for points, mark, colour, label in (
            (own, "o", svg.BLUE, "this run"),
            (rivals, "x", svg.ORANGE, "others"),
        ):
            if points:
                sizes, kls = [one.size_bytes for one in points], [one.kl for one in points]
                axes.plot(sizes, kls, mark, markersize=6, color=colour, label=label)
            for one in points:
                axis.beside(axes, one.name, one.size_bytes, one.kl, gap=7)
        every = [*own, *rivals]
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        # Names stand on the right of their points.
        least, most = min(one.size_bytes for one in every), max(one.size_bytes for one in every)
        axes.set_xlim(least - 0.08 * most, most + 0.4 * max(most - least, 0.3 * most))
        axes.xaxis.set_major_formatter(axis.tick(units.size_unrounded))
        axes.locator_params(axis="x", nbins=5)
        axes.set(xlabel="size of the file", ylabel="mean KL, nats, logarithmic")
        axis.legend(axes)

    return Plot("size-against-kl", _title(own, rivals), svg.drawn("size-against-kl", 0.9 + 2.6, draw))


def _title(own: Sequence[Rival], rivals: Sequence[Rival]) -> str:
    last = own[-1]
    said = f"KL {units.divergence(last.kl)} at {units.size(last.size_bytes)} ({last.name})"
    beside = [one for one in rivals if one.size_bytes <= last.size_bytes]
    kind = "the best of the others at most as large"
    if not beside:
        beside, kind = (
            [one for one in own[:-1] if one.size_bytes <= last.size_bytes],
            "the best of the run's own",
        )
    if not beside:
        return said
    best = min(beside, key=lambda one: one.kl)
    return f"{said}, {units.share(last.kl, best.kl)} of {best.name}, {kind}"
