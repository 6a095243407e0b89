"""The result as the terminal shows it at the end of a run."""

from __future__ import annotations

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgetune.core.export_events import Verified
from edgetune.report import units
from edgetune.report.grids import Grid, divergences, stages, traffic
from edgetune.report.host_grids import hosts_notes
from edgetune.report.notes import pruned_note, words_note
from edgetune.report.summary import Summary
from edgetune.report.verdict import trouble


def print_result(console: Console, summary: Summary) -> None:
    """Print the stages, the traffic beside its alternatives, forgetting and the check of the exported file.

    Args:
        console: where to print; 80 columns are enough.
        summary: a run, complete or not; parts that were not measured are left out.
    """
    warning = trouble(summary)
    if warning:
        console.print(Text(warning, style="bold red" if summary.failure else "bold yellow"))
    for grid in (stages(summary), divergences(summary), traffic(summary)):
        if grid.rows:
            console.print(_table(grid))
    notes = (
        words_note(summary.data),
        pruned_note(summary.pruned) if summary.pruned else None,
        *hosts_notes(summary.hosts),
        forgetting(summary),
        compensation(summary),
        verification(summary),
    )
    for line in notes:
        if line:
            console.print(Text(line))


def forgetting(summary: Summary) -> str | None:
    """Say how the loss on the base's own kind of text moved, or None where it was not measured."""
    measured = [(stage.name, stage.base_style_loss) for stage in summary.stages]
    known = [f"{name} {units.loss(value)}" for name, value in measured if value is not None]
    return f"Forgetting, loss on the base's own kind of text: {', '.join(known)}" if len(known) > 1 else None


def compensation(summary: Summary) -> str | None:
    """Say what compression made of rounding's divergence, where the loss often cannot see it; None if not measured."""
    rounded, compressed = summary.stage("rounded"), summary.stage("compressed")
    if rounded is None or compressed is None:
        return None
    parts = [
        f"{_moved(before, after)} {where} ({units.divergence(before)} to {units.divergence(after)})"
        for where, before, after in (
            ("on responses", rounded.kl_response, compressed.kl_response),
            ("on all tokens", rounded.kl, compressed.kl),
        )
        if before is not None and after is not None and before > 0 and math.isfinite(before) and after >= 0
    ]
    if not parts:
        return None
    return (
        "Predictions beside those before compression, KL of the compressed model against that of rounding: "
        f"{', '.join(parts)}"
    )


def _moved(before: float, after: float) -> str:
    change = after / before - 1
    return f"{abs(change):.0%} {'less' if change < 0 else 'more'}"


def verification(summary: Summary) -> str | None:
    """Say how the reloaded file compared with the model it came from, or None if it was not checked."""
    check = summary.verified
    if check is None:
        return None
    return (
        f"Checked in llama.cpp: {check.file}, perplexity {units.perplexity(check.perplexity_llama_cpp)} "
        f"there and {units.perplexity(check.perplexity_torch)} in torch; log-probabilities differ by "
        f"{check.mean_log_probability_difference:.2g} on average, "
        f"{check.max_log_probability_difference:.2g} at most{_usual(check)}; "
        f"same tokens on {check.tokenizer_texts:,} texts"
    )


def _usual(check: Verified) -> str:
    mean, largest = check.usual_mean_difference, check.usual_max_difference
    if mean is None or largest is None:
        return ""
    return f", with llama.cpp's own fp16 attention by {mean:.2g} and {largest:.2g}"


def _table(grid: Grid) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for index, heading in enumerate(grid.head):
        table.add_column(Text(heading), justify="right" if index else "left", overflow="fold")
    for row in grid.rows:
        # Text, not str: a name in square brackets is a name, not markup.
        table.add_row(*(Text(cell) for cell in row))
    return table
