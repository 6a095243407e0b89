"""The tables of a result as rows of text, for the terminal and for the page."""

from __future__ import annotations

from dataclasses import dataclass

from edgetune.report import units
from edgetune.report.compression_plots import in_trouble
from edgetune.report.summary import Summary


@dataclass(frozen=True, slots=True)
class Grid:
    """A table: headings, rows of text whose first cell names the row, and numbers of rows to look at, from 0."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bad: frozenset[int] = frozenset()


def stages(summary: Summary) -> Grid:
    """Return one row a stage; a score of answers, where there is one, takes the place of what the loss says too.

    Where predictions were compared with those of the model before compression, their mean KL has a column.
    """
    metric = next((stage.metric for stage in summary.stages if stage.metric), None)
    third = "Perplexity" if metric is None else metric.capitalize()
    far = any(stage.kl is not None for stage in summary.stages)
    head = ("Stage", "Loss", *(("KL",) if far else ()), third, "Rouge-L", "File size", "Peak memory", "Time")
    rows = (
        (
            stage.name,
            units.loss(stage.loss),
            *((units.divergence(stage.kl),) if far else ()),
            units.perplexity(stage.perplexity) if metric is None else units.rouge(stage.score),
            units.rouge(stage.rouge_l),
            units.size(stage.size_bytes),
            units.size(stage.peak_memory_bytes),
            units.duration(stage.seconds),
        )
        for stage in summary.stages
    )
    return Grid(head, tuple(rows))


def divergences(summary: Summary) -> Grid:
    """Return one row a stage whose predictions were compared with those of the model before compression."""
    head = ("Stage", "KL, responses", "KL, all tokens", "KL, 99.9 %", "Same first choice")
    rows = (
        (
            stage.name,
            units.divergence(stage.kl_response),
            units.divergence(stage.kl),
            units.divergence(stage.kl_rare),
            units.percent(stage.top_1),
        )
        for stage in summary.stages
        if stage.kl is not None
    )
    return Grid(head, tuple(rows))


def traffic(summary: Summary) -> Grid:
    """Return bytes of one device in one round beside the alternatives; no rows if nothing was sent."""
    sent, name = summary.traffic, summary.method or "this run"
    if not sent.total_bytes and not sent.alternatives:
        return Grid((), ())
    up, down = sent.payload_up_bytes, sent.payload_down_bytes
    rows = [(name, units.size(up), units.size(down), "")]
    for other, payload in sent.alternatives.items():
        other_up, other_down = payload.get("payload_up_bytes", 0), payload.get("payload_down_bytes", 0)
        share = f"{units.share(up, other_up)} up, {units.share(down, other_down)} down"
        rows.append((other, units.size(other_up), units.size(other_down), share))
    return Grid(("A device and round", "Up", "Down", f"Of that, {name} sends"), tuple(rows))


def rounds(summary: Summary) -> Grid:
    """Return one row a round; what the mean of low-rank factors lacks stands there if a round measured it."""
    measured = any(done.aggregation_residual is not None for done in summary.rounds)
    head = (
        *("Round", "Training loss", "Held-out loss", "Rouge-L", "Up", "Down", "Peak memory", "Time"),
        *(("Residual of the mean",) if measured else ()),
    )
    rows = (
        (
            str(done.round),
            units.loss(done.train_loss),
            units.loss(done.loss),
            units.rouge(done.rouge_l),
            units.size(sum(done.payload_up_bytes)),
            units.size(sum(done.payload_down_bytes)),
            units.size(done.peak_memory_bytes),
            units.duration(done.seconds),
            *((units.residual(done.aggregation_residual),) if measured else ()),
        )
        for done in summary.rounds
    )
    return Grid(head, tuple(rows))


def layers(summary: Summary) -> Grid:
    """Return one row a compressed matrix; those that fell back or needed more damping are to look at."""
    head = ("Matrix", "Grid", "Exactly 0", "Error, solved", "Error, plain", "Damping", "Fell back")
    rows = (
        (
            layer.name,
            layer.grid,
            f"{layer.sparsity:.1%}",
            f"{layer.error:.2e}",
            f"{layer.rounding_error:.2e}",
            f"{layer.damping:g}",
            "yes" if layer.fallback else "no",
        )
        for layer in summary.layers
    )
    bad = frozenset(place for place, marked in enumerate(in_trouble(summary.layers)) if marked)
    return Grid(head, tuple(rows), bad)
