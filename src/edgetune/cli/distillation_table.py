"""`bench distillation`: lessons of one teacher to one student of half the size, in a table with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console

from edgetune.core.files import write_atomic

PAGE = """# A student of half the size learns from its teacher

Written by `edgetune bench distillation`; do not edit. The teacher is the embedded model with all weights tuned on
{records:,} records of the embedded corpus, {teacher_steps} steps of {batch}. The student is that teacher with
{ratio:.0%} of the weights of its blocks pruned, which leaves half of all, tuned for {start_steps} steps on {few:,} of
those records, the only ones of which it knows answers. From there every lesson takes {steps} steps of all weights
(AdamW, {rate:g}, cosine). To learn on its own responses the student needs prompts alone: it has those of all records
there, and reads no other answer. Rouge-L of greedy answers and loss in nats a response token on {held_out} other
records; means and standard deviations over {seeds} seeds, each with corpus, teacher and student of its own. Seconds are
of the lesson with its measurement, one thread, on a machine that others used.

Before the lessons: loss {base_loss:.3f}, Rouge-L {base_rouge:.2f}.

{table}

{verdict}
"""
HEAD = """| lesson | reads | beta | lambda | Rouge-L | loss | seconds | seeds |
|---|---|---|---|---|---|---|---|"""
TABLE = "distillation"
OURS = "on-policy, reverse"
OTHERS = ("no teacher", "supervised, forward", "supervised, reverse", "supervised, forward, all answers")


def distillation_table(seeds: int, out: Path, jobs: int) -> None:
    """Run the lessons; print them, and write `distillation.md`."""
    from edgetune.bench import distillation as bench
    from edgetune.bench.cells import read_rows

    console = Console(highlight=False, soft_wrap=True)
    cells = bench.cells_of(seeds)

    def told(row: Mapping[str, Any]) -> None:
        said = f"Rouge-L {row['base_rouge_l']:.2f} -> {row['rouge_l']:.2f}, {row['seconds']:.0f} s"
        console.print(f"{row['what']}, seed {row['seed']}: {said}")

    lines = bench.distillation(cells, out, jobs=jobs, told=told)
    names = {cell.name for cell in cells}
    rows = [row for row in read_rows(out / "rows.jsonl") if row["cell"] in names]
    page = PAGE.format(
        records=bench.RECORDS, few=bench.FEW, held_out=bench.HELD_OUT, teacher_steps=bench.TEACHER_STEPS,
        start_steps=bench.START_STEPS, steps=cells[0].steps, rate=cells[0].rate, batch=bench.BATCH,
        ratio=bench.RATIO, seeds=seeds, base_loss=bench.spread([row["base_loss"] for row in rows])[0],
        base_rouge=bench.spread([row["base_rouge_l"] for row in rows])[0],
        table="\n".join([HEAD, *map(_row, lines)]), verdict=verdict(rows),
    )  # fmt: skip
    write_atomic(out / f"{TABLE}.md", lambda path: path.write_text(page, "utf-8"))
    console.print(page)


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how far reverse divergence on the student's own responses is ahead of every other way to learn."""
    from edgetune.bench.distillation import ahead

    if len({row["seed"] for row in rows}) < 2:
        return "One seed has no standard error, so that nothing follows from it."
    said = []
    for other in OTHERS:
        mean, error = ahead(rows, OURS, other)
        if isfinite(error):
            said.append(f"{mean:+.2f} ± {error:.2f} to {other}")
    return (
        "Rouge-L of reverse divergence on the student's own responses, difference of runs of one seed with its "
        f"standard error: {'; '.join(said)}."
    )


def _row(line: Mapping[str, Any]) -> str:
    from edgetune.bench.distillation import LESSONS

    known, told = LESSONS[line["what"]]
    figures = " | ".join(_figure(line, name, form) for name, form in (("rouge_l", ".2f"), ("loss", ".4f")))
    return (
        f"| {line['what']} | {known} | {told.get('beta', '')} | {told.get('on_policy', '')} | {figures} "
        f"| {line['seconds'][0]:.0f} | {line['seeds']} |"
    )


def _figure(line: Mapping[str, Any], name: str, form: str) -> str:
    around = f" ± {line[name][1]:{form}}" if line["seeds"] > 1 else ""  # one seed has no spread
    return f"{line[name][0]:{form}}{around}"
