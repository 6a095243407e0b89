"""`bench forwards`: methods at equal forward passes, in a table and a figure; it goes on where it was interrupted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from edgetune.core.files import write_atomic

HEAD = """# Methods at equal forward passes

Written by `edgetune bench forwards`; do not edit. On one device every method does the same number of forward passes of
a batch of {batch} records; a backward pass counts as two, so that back-propagation's step counts three. Each takes the
radius that the range test finds on training records, and the best of several rates, factors of two apart round the
range test's: by the loss on a tenth of the training records, which nothing is trained on, after whole runs of two other
seeds. Where no rate was tried the range test's is taken as it is (`--rates 1`). Held-out records are read by no choice:
they are only measured on, at the end and for the figure. Data are the same for every seed, which fixes directions and
batches. Loss in nats a response token and Rouge-L on the held-out
records after the last step, mean and standard deviation over seeds; `closed` is the part of the gap between {base} and
{ceiling} that a method's mean loss closes; `ahead` is how much lower its loss is than {base}'s, paired by seed, with
its standard error. CPU seconds are those of a measured run's process, start and measurements included.
"""
STORIES = ("models/stories260K", "dolly/databricks-dolly-15k.jsonl")
"""Model and data of the second task, in $EDGETUNE_DATA."""


def forwards_table(
    model: str | None,
    data: str | None,
    only: Sequence[str],
    seeds: int,
    out: Path,
    jobs: int,
    work: int,
    rates: int,
) -> None:
    """Run the comparison; print and write the page of all that the folder holds, its figures beside it."""
    from edgetune.bench.cells import read_rows
    from edgetune.bench.forwards import RANGE, ROWS, Task, compare, ways_of

    console = Console(highlight=False, soft_wrap=True)
    ways = ways_of(only)
    if model is None:
        tasks, skipped = tasks_here(os.environ.get("EDGETUNE_DATA"))
    else:
        tasks, skipped = [Task(model, data)], None
    if skipped:
        console.print(skipped)

    def told(row: Mapping[str, Any]) -> None:
        rate, where = f"rate {row['learning_rate']:.2g}", f"{row['task']}, {row['way']}"
        if row["phase"] == RANGE:
            said = f"the range test says {rate}"
        else:
            loss = "astray" if row["loss"] is None else f"loss {row['base_loss']:.4f} -> {row['loss']:.4f}"
            said = f"{row['phase']}, {rate}, seed {row['seed']}: {loss}"
        console.print(f"{where}: {said}, {row['cpu_seconds']:.0f} CPU s")

    compare(tasks, ways, seeds, work, out, jobs=jobs, told=told, rates=rates)
    text = page_of(list(read_rows(out / ROWS)), out)
    _write(out / "forwards.md", text)
    console.print(text)


def tasks_here(folder: str | None) -> tuple[list[Any], str | None]:
    """Return the tasks whose files are there, and why one is left out if it is.

    Args:
        folder: of models and data, $EDGETUNE_DATA.
    """
    from edgetune.bench.forwards import Task

    if not folder:
        return [Task()], "stories260K on Dolly is left out: EDGETUNE_DATA names no folder of models and data"
    model, data = (Path(folder) / one for one in STORIES)
    absent = [str(path) for path in (model, data) if not path.exists()]
    if absent:
        return [Task()], f"stories260K on Dolly is left out: there is no {' and no '.join(absent)}"
    return [Task(), Task(str(model), str(data))], None


def page_of(rows: Sequence[Mapping[str, Any]], out: Path) -> str:
    """Return the page of some rows, its figures written beside it."""
    from edgetune.bench.forward_lines import lines_of
    from edgetune.bench.forwards import BASE, BATCH, CEILING, RUN
    from edgetune.cli.tables import SVG
    from edgetune.report.curves import curves

    text = HEAD.format(batch=BATCH, base=BASE, ceiling=CEILING)
    kinds = dict.fromkeys((row["task"], row["work"]) for row in rows if row["phase"] == RUN)
    for task, work in kinds:
        lines = lines_of([dict(row) for row in rows if (row["task"], row["work"]) == (task, work)])
        title = f"{task}: {work // BATCH:,} forward passes"
        score = lines[0]["base_rouge_l"]
        said = f", Rouge-L {score[0]:.1f}" if score else ""
        text += f"\n## {title}\n\nBefore: loss {lines[0]['base_loss'][0]:.4f}{said}.\n"
        drawn = {line["way"]: line["points"] for line in lines if line["points"]}
        if drawn:
            name = f"forwards-{task}-{work}"
            picture = curves(name, drawn, f"forward passes of {BATCH} records", "held-out loss")
            _write(out / f"{name}.svg", picture.replace("<svg", SVG, 1))
            text += f"\n![Held-out loss by forward passes]({name}.svg)\n"
        text += f"\n{_table(lines)}\n"
    return text


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    from edgetune.bench.forward_lines import ahead
    from edgetune.bench.forwards import BASE

    base = next((line for line in lines if line["way"] == BASE), None)
    rows = [
        "| method | passes a step | steps | rate | eps | rates tried | development loss | held-out loss | Rouge-L "
        "| closed | ahead | CPU s | seeds |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        apart = ahead(line, base) if base and line is not base else None
        cells = [
            line["way"], line["passes"], f"{line['steps']:,}", f"{line['learning_rate']:.2g}",
            "" if line["eps"] is None else f"{line['eps']:.2g}", line["tried"],
            "" if line["development"] is None else f"{line['development']:.4f}",
            _spread(line["loss"], 4), _spread(line["rouge_l"], 1),
            "" if line["closed"] is None else f"{100 * line['closed']:.0f} %",
            f"{apart[0]:+.4f} ± {apart[1]:.4f}" if apart else "",
            f"{line['cpu_seconds'][0]:.0f}", _seeds(line),
        ]  # fmt: skip
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _seeds(line: Mapping[str, Any]) -> str:
    astray = line["seeds"] - line["ended"]
    return f"{line['seeds']}, {astray} astray" if astray else str(line["seeds"])


def _spread(pair: Sequence[float] | None, digits: int) -> str:
    if pair is None:
        return ""
    around = f" ± {pair[1]:.{digits}f}" if pair[1] else ""  # one seed has no spread
    return f"{pair[0]:.{digits}f}{around}"


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))
