"""`bench compression`: methods, grids and calibrations of one model in a table, beside rivals measured elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from edgetune.core.files import write_atomic
from edgetune.report import units
from edgetune.report.rivals import Rival, read_rivals

PAGE = """# One-shot compression of {model}

Written by `edgetune bench compression`; do not edit. The matrices of the decoder blocks are compressed, embedding and
head stay. Mean KL and its 99.9 % quantile in nats to the model before, perplexity and share of equal first choices, on
{where}; means and standard deviations over calibrations of {tokens:,} tokens. CPU seconds and peak
memory above the start are of the compression alone, one thread; bytes and bits a weight are those of
the compressed matrices as stored.

{table}
"""
HEAD = """| method | grid | KL | KL 99.9 % | perplexity | top-1 | CPU s | memory | bytes | bits | seeds |
|---|---|---|---|---|---|---|---|---|---|---|"""


def compression_table(
    model: str, calibration: str | None, test: str | None, only: Sequence[str], seeds: int, tokens: int,
    rivals: Path | None, out: Path, jobs: int,
) -> None:  # fmt: skip
    """Run the table of compression on one model; print it, and write `compression-MODEL.md`."""
    others = read_rivals(rivals) if rivals else ()
    from edgetune.bench.compression import cells_of, compression

    console = Console(highlight=False, soft_wrap=True)
    cells = cells_of(model, only, seeds, text=calibration, test=test, tokens=tokens)

    def told(row: Mapping[str, Any]) -> None:
        console.print(f"{row['cell']}: KL {units.divergence(row['kl'])}, {row['cpu_seconds']:.1f} CPU s")

    lines = compression(cells, out, jobs=jobs, told=told)
    measured = test or (
        "text held out of the calibration's" if calibration else "the model's own test tokens"
    )
    short = Path(model).name
    page = PAGE.format(model=short, where=measured, tokens=lines[0]["tokens"], table=table(lines, others))
    write_atomic(out / f"compression-{short}.md", lambda path: path.write_text(page, "utf-8"))
    console.print(page)


def table(lines: Sequence[Mapping[str, Any]], rivals: Sequence[Rival]) -> str:
    """Return the lines and the rivals by size, as a table of Markdown."""
    rows = [(line["bytes"], line["kl"][0], _row(line)) for line in lines]
    rows += [
        (one.size_bytes, one.kl, f"| {one.name} | | {one.kl:.2e} | | | | | | {one.size_bytes:,} | | |")
        for one in rivals
    ]
    return "\n".join([HEAD, *(row for *_, row in sorted(rows))])


def _row(line: Mapping[str, Any]) -> str:
    bits = units.MISSING if line["bits"] is None else f"{line['bits']:.2f}"
    return (
        f"| {line['method']} | {line['grid']} | {_figure(line['kl'], '.2e')} | {_figure(line['kl_rare'], '.1e')} "
        f"| {_figure(line['perplexity'], '.4f')} | {_figure(line['top_1'], '.4f')} | {line['cpu_seconds'][0]:.1f} "
        f"| {units.size(line['memory'])} | {line['bytes']:,} | {bits} | {line['seeds']} |"
    )


def _figure(pair: Sequence[float], form: str) -> str:
    around = f" ± {pair[1]:{form}}" if pair[1] else ""  # one seed has no spread
    return f"{pair[0]:{form}}{around}"
