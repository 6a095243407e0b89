"""The figures of the report, each drawn from the summary alone, with a title that states what is seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edgetune.report import axis, svg, units
from edgetune.report.compression_plots import layer_errors, size_against_divergence
from edgetune.report.host_plots import online_by_round, transport_by_round
from edgetune.report.rivals import Rival
from edgetune.report.summary import Summary
from edgetune.report.svg import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plots(summary: Summary, rivals: Sequence[Rival] = ()) -> list[Plot]:
    """Draw every figure for which the run has data.

    Args:
        summary: a run, complete or not.
        rivals: files of other tools.

    Returns:
        Figures in reading order; none for an empty run.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    drawings = (
        loss_by_round,
        rouge_by_round,
        loss_by_stage,
        rouge_by_stage,
        size_by_stage,
        memory_by_stage,
        bytes_by_method,
        online_by_round,
        transport_by_round,
        layer_errors,
    )
    found = [*(drawing(summary) for drawing in drawings), size_against_divergence(summary, rivals)]
    return [plot for plot in found if plot is not None]


def loss_by_round(summary: Summary) -> Plot | None:
    """Draw training and held-out loss by round."""
    held_out = [(done.round, done.loss) for done in summary.rounds if done.loss is not None]
    train = [(done.round, done.train_loss) for done in summary.rounds]
    train = [] if all(math.isnan(loss) for _, loss in train) else train
    base = summary.tuned_from
    if base is not None and held_out:
        held_out.insert(0, (0, base.loss))
    if not train and not held_out:
        return None

    def draw(axes: Axes) -> None:
        if train:
            axes.plot(*_columns(train), "--", color=svg.ORANGE, label="on the devices, while stepping")
        if held_out:
            axes.plot(*_columns(held_out), "o-", markersize=3.5, color=svg.BLUE, label="held out")
        axes.set(xlabel="round", ylabel="loss, nats a token")
        axis.whole_ticks(axes)
        axis.legend(axes)

    told, which = (held_out, "Held-out") if len(held_out) > 1 else (train, "Training")
    title = f"{which} loss {_change([value for _, value in told], units.loss)}"
    return Plot("loss-by-round", title, svg.drawn("loss-by-round", 3.2, draw))


def rouge_by_round(summary: Summary) -> Plot | None:
    """Draw Rouge-L by round, from the base model to the tuned one."""
    points = {done.round: done.rouge_l for done in summary.rounds if done.rouge_l is not None}
    base, tuned = summary.tuned_from, summary.stage("tuned")
    if base is not None:
        points[0] = base.rouge_l
    if tuned is not None and summary.rounds:
        points[summary.rounds[-1].round] = tuned.rouge_l
    values = sorted(points.items())
    if len(values) < 2:
        return None

    def draw(axes: Axes) -> None:
        axes.plot(*_columns(values), "o-", markersize=3.5, color=svg.BLUE)
        axes.set(xlabel="round (0 is the base model)", ylabel="Rouge-L F1, %, held out")
        axis.whole_ticks(axes)

    title = f"Held-out Rouge-L {_change([value for _, value in values], units.rouge)}"
    return Plot("rouge-by-round", title, svg.drawn("rouge-by-round", 3.2, draw))


def loss_by_stage(summary: Summary) -> Plot | None:
    """Draw held-out loss as one bar a stage."""
    rows = [(stage.name, stage.loss) for stage in summary.stages]
    return _bars("loss-by-stage", "Held-out loss", rows, units.loss, "loss, nats a token (shorter is better)")


def rouge_by_stage(summary: Summary) -> Plot | None:
    """Draw Rouge-L as one bar a stage."""
    rows = [(stage.name, stage.rouge_l) for stage in summary.stages]
    return _bars("rouge-by-stage", "Rouge-L", rows, units.rouge, "Rouge-L F1, % (longer is better)")


def size_by_stage(summary: Summary) -> Plot | None:
    """Draw the size of the file that holds each stage."""
    rows = [(stage.name, float(stage.size_bytes)) for stage in summary.stages]
    return _bars("size-by-stage", "File size", rows, units.size, "size of the file")


def memory_by_stage(summary: Summary) -> Plot | None:
    """Draw peak memory by stage, beside what alternatives need where the log says."""
    rows = [(stage.name, float(stage.peak_memory_bytes)) for stage in summary.stages]
    if summary.rounds:
        rounds = max(done.peak_memory_bytes for done in summary.rounds)
        rows.append((f"rounds, {summary.method or 'this run'}", float(rounds)))
    others = [
        (name, float(needed["peak_memory_bytes"]))
        for name, needed in summary.traffic.alternatives.items()
        if "peak_memory_bytes" in needed
    ]
    plot = _bars("memory-by-stage", "Peak memory", rows + others, units.size, "peak memory", len(others))
    if plot is None or not rows:
        return None
    most = max(rows, key=lambda row: row[1])
    return replace(plot, title=f"Peak memory of the process is at most {units.size(most[1])} ({most[0]})")


def bytes_by_method(summary: Summary) -> Plot | None:
    """Draw bytes a device and round, up and down, beside the alternatives, on a logarithmic axis.

    Points, not bars: a logarithmic axis has no 0 that a length could be taken from.
    """
    traffic = summary.traffic
    own = (traffic.payload_up_bytes, traffic.payload_down_bytes)
    if not all(own):
        return None
    rows = [(summary.method or "this run", *own)]
    for name, payload in traffic.alternatives.items():
        rows.append((name, payload.get("payload_up_bytes", 0), payload.get("payload_down_bytes", 0)))
    rows = [row for row in rows if row[1] > 0 and row[2] > 0]

    def draw(axes: Axes) -> None:
        sizes = {"up": [up for _, up, _ in rows], "down": [down for _, _, down in rows]}
        values = sizes["up"] + sizes["down"]
        for way, mark, offset, colour in (("up", "^", -0.2, svg.BLUE), ("down", "v", 0.2, svg.ORANGE)):
            places = [index + offset for index in range(len(rows))]
            axes.plot(sizes[way], places, mark, markersize=6, color=colour, label=way)
            for value, place in zip(sizes[way], places, strict=True):
                axis.beside(axes, units.size(value), value, place, gap=7)
        axes.set_xscale("log")
        axes.set_xlim(10.0 ** math.floor(math.log10(min(values)) - 0.3), 30 * max(values))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axis.label_rows(axes, [row[0] for row in rows])
        axes.xaxis.set_major_formatter(axis.tick(units.size_unrounded))
        axes.xaxis.minorticks_off()
        axes.set_xlabel("bytes a device and round, logarithmic")
        axis.legend(axes)

    height = 1.3 + 0.6 * len(rows)
    return Plot("bytes-by-method", _bytes_title(rows), svg.drawn("bytes-by-method", height, draw))


def _bars(
    name: str,
    what: str,
    rows: Sequence[tuple[str, float]],
    write: Callable[[float], str],
    label: str,
    others: int = 0,
) -> Plot | None:
    """Draw one bar a row, where there is something to compare; the last `others` rows are alternatives."""
    finite = [row for row in rows if math.isfinite(row[1])]
    if len(finite) < 2:
        return None
    own = len(finite) - others
    drawing = svg.drawn(
        name, 0.9 + 0.36 * len(finite), lambda axes: axis.bars(axes, finite, own, write, label)
    )
    return Plot(name, _ends(what, finite, write), drawing)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _change(values: Sequence[float], write: Callable[[float], str]) -> str:
    first, last = values[0], values[-1]
    if len(values) == 1:
        return f"is {write(last)}"
    if write(first) == write(last):
        return f"ends where it began, at {write(last)}"
    return f"{'fell' if last < first else 'rose'} from {write(first)} to {write(last)}"


def _ends(what: str, rows: Sequence[tuple[str, float]], write: Callable[[float], str]) -> str:
    """State how a quantity moved from the first stage to the last."""
    (first, before), (last, after) = rows[0], rows[-1]
    if write(before) == write(after):
        return f"{what} is {write(after)} in both {first} and {last}"
    verb = "falls" if after < before else "rises"
    return f"{what} {verb} from {write(before)} ({first}) to {write(after)} ({last})"


def _bytes_title(rows: Sequence[tuple[str, int, int]]) -> str:
    name, up, down = rows[0]
    if len(rows) == 1:
        return f"{name} sends {units.size(up)} up and {units.size(down)} down a device and round"
    other, other_up, other_down = max(rows[1:], key=lambda row: row[1] + row[2])
    return f"{name} sends {units.share(up + down, other_up + other_down)} of the bytes of {other}"
