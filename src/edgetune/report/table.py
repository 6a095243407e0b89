"""The result as the terminal shows it at the end of a run."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgetune.core.export_events import Verified
from edgetune.report import units
from edgetune.report.grids import Grid, stages, traffic
from edgetune.report.host_grids import hosts_notes
from edgetune.report.notes import words_note
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
    for grid in (stages(summary), traffic(summary)):
        if grid.rows:
            console.print(_table(grid))
    notes = (
        words_note(summary.data),
        *hosts_notes(summary.hosts),
        forgetting(summary),
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
