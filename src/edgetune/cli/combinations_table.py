"""`bench combinations`: tuning methods by compressions, with maps; it goes on where it was interrupted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from edgetune.core.files import write_atomic

HEAD = """# Tuning by compression

Written by `edgetune bench combinations`; do not edit. Every device that is asked does {work:,} forward passes of a
record in all (`--work {work}`), a backward pass counting as two; then the model is compressed. `prune` takes a fifth of
the blocks' matrices, uniform widths, restored by least squares and not trained again. Held-out loss in nats a response
token and Rouge-L, mean and standard deviation over seeds; size is that of the file's tensors; memory is the greatest of
the whole process while tuning, and what compressing took above the loaded model. Loss is shaded in the maps, darker is
better within a column.
"""


def combinations_table(
    model: str, data: str | None, only: Sequence[str], seeds: int, out: Path, jobs: int, work: int
) -> None:
    """Run the combinations of one model and its data; print and write the page of all that the folder holds."""
    from edgetune.bench.cells import read_rows, run_cells
    from edgetune.bench.combinations import TUNINGS, combinations_of, row_of
    from edgetune.models.embedded import EMBEDDED

    console = Console(highlight=False, soft_wrap=True)
    source = None if model == EMBEDDED else data
    cells = combinations_of(seeds, model=model, data=source, tunings=list(only) or TUNINGS, work=work)

    def told(row: Mapping[str, Any]) -> None:
        losses = ", ".join(f"{way} {found['loss']:.3f}" for way, found in row["ways"].items())
        console.print(f"{row['cell']}: loss {losses}")

    run_cells(cells, out / "combinations.jsonl", out / "runs", jobs=jobs, told=told, make=row_of)
    text = page_of(list(read_rows(out / "combinations.jsonl")), out, work)
    _write(out / "combinations.md", text)
    console.print(text)


def page_of(rows: Sequence[Mapping[str, Any]], out: Path, work: int) -> str:
    """Return the page of some rows, its heat maps written beside it."""
    from edgetune.bench.combinations import lines_of, order_verdicts

    text = HEAD.format(work=work)
    for model, task in dict.fromkeys((row["model"], row["task"]) for row in rows):
        mine = [dict(row) for row in rows if (row["model"], row["task"]) == (model, task)]
        name = f"{model}-{task}" if task else model
        base = next((row for row in mine if row["base_loss"] is not None), None)
        before = (
            f"Before: loss {base['base_loss']:.3f}, Rouge-L {base['base_rouge_l']:.1f}.\n\n" if base else ""
        )
        lines = lines_of(mine)
        picture = f"combinations-{name}.svg"
        _write(out / picture, _map(name, lines))
        text += (
            f"\n## {name}\n\n{before}![Loss by tuning, order and compression]({picture})\n\n{_table(lines)}\n"
        )
        verdicts = order_verdicts(mine)
        if verdicts:
            text += f"\n{_orders(verdicts)}\n"
    return text


def _table(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| tuning | order | compression | loss | Rouge-L | size | tuning memory | compressing | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        rows.append(
            f"| {line['tuning']} | {line['order']} | {line['way']} | {_spread(line['loss'], 4)} "
            f"| {_spread(line['rouge_l'], 1)} | {line['size_bytes'][0] / 1e3:,.0f} kB "
            f"| {line['tuning_peak'][0] / 1e6:,.0f} MB | {line['above_bytes'][0] / 1e6:,.0f} MB | {line['seeds']} |"
        )
    return "\n".join(rows)


def _orders(verdicts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "Pruning after tuning against pruning before it, difference of the loss (paired by seed, standard error);"
        " above 0 pruning first is better.",
        "",
        "| tuning | compression | difference |",
        "|---|---|---|",
    ]
    for one in verdicts:
        around = f" ± {one['error']:.4f}" if one["error"] else ""
        rows.append(f"| {one['tuning']} | {one['way']} | {one['mean']:+.4f}{around} |")
    return "\n".join(rows)


def _spread(pair: Sequence[float], digits: int) -> str:
    around = f" ± {pair[1]:.{digits}f}" if pair[1] else ""  # one seed has no spread
    return f"{pair[0]:.{digits}f}{around}"


def _map(name: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a stand-alone SVG: a row a tuning and order, a column a compression."""
    from edgetune.cli.tables import SVG
    from edgetune.report.heat import Column, heat_map

    ways = list(dict.fromkeys(line["way"] for line in lines))
    rows: dict[str, dict[str, float | None]] = {}
    for line in lines:
        row = rows.setdefault(f"{line['tuning']}: {line['order']}", dict.fromkeys(ways))
        row[line["way"]] = line["loss"][0]
    columns = [Column(way, way, "{:.3f}".format) for way in ways]
    return heat_map(f"combinations-{name}", rows, columns).replace("<svg", SVG, 1)


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))
