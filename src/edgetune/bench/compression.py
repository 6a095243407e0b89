"""Every compression method on every grid and several calibrations of one model: quality, bytes, seconds, memory."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgetune.bench.cells import Row, in_process, run_cells
from edgetune.core.errors import ConfigError
from edgetune.core.integers import INTEGERS, grid_named
from edgetune.core.quantised import GRIDS
from edgetune.methods.catalogue import compression_method, compression_names

FIGURES = ("kl", "kl_rare", "perplexity", "top_1", "cpu_seconds")
"""What differs from one calibration to the next."""


@dataclass(frozen=True, slots=True)
class Compression:
    """One cell of the table: the arguments of `compressing.measure`.

    Args:
        model: folder, file or name.
        method: public name.
        grid: public name.
        seed: of the calibration.
        text: file to calibrate on; None for the tokens beside the model.
        test: file to measure on; None to hold some of the text out.
        tokens: to calibrate on.
    """

    model: str
    method: str
    grid: str
    seed: int
    text: str | None
    test: str | None
    tokens: int

    @property
    def name(self) -> str:
        """Names the cell among all, by a digest of its texts and their sizes too."""
        sizes = [Path(one).stat().st_size if one else None for one in (self.text, self.test)]
        said = json.dumps([self.model, self.text, self.test, sizes, self.tokens])
        digest = sha256(said.encode()).hexdigest()[:8]
        return f"compression-{Path(self.model).name}-{self.method}-{self.grid}-{self.seed}-{digest}"


def cells_of(
    model: str, only: Sequence[str], seeds: int, *, text: str | None, test: str | None, tokens: int
) -> list[Compression]:
    """Return the cells of a model: methods that read no text have one seed; grids that a method has no use for, none.

    Args:
        model: folder, file or name.
        only: names of methods and of grids; all of a kind of which none is named.
        seeds: calibrations.
        text: as in `Compression`.
        test: as in `Compression`.
        tokens: as in `Compression`.

    Raises:
        ConfigError: a name of neither; a missing file.
    """
    names = compression_names()
    for name in only:
        if name not in names and grid_named(name) is None:
            raise ConfigError(
                f"no compression method or grid {name!r}",
                where="--only",
                hint=f"of {', '.join([*names, *GRIDS])}",
            )
    for path in (text, test):
        if path is not None and not Path(path).is_file():
            raise ConfigError("no such file", where=path, hint="a text: --calibration FILE, --data FILE")
    return [
        Compression(model, name, grid, seed, text, test, tokens)
        for name in [one for one in names if one in only] or names
        for grid in [one for one in (*GRIDS, *INTEGERS) if one in only] or GRIDS
        if _fits(name, grid)
        for seed in range(seeds if compression_method(name).compensate else 1)
    ]


def _fits(name: str, grid: str) -> bool:
    try:
        return replace(compression_method(name), grid=grid_named(grid)).grid == grid_named(grid)
    except ConfigError:
        return False


def compression(
    cells: Iterable[Compression], out: Path, *, jobs: int, told: Callable[[Row], None]
) -> list[dict[str, Any]]:
    """Run the cells and return one line a method and grid, least KL at equal bytes first.

    Args:
        cells: from `cells_of`.
        out: folder of `rows.jsonl`, which grows.
        jobs: processes side by side.
        told: called with every new row.
    """
    rows = run_cells(cells, out / "rows.jsonl", out / "runs", jobs=jobs, told=told, make=_run)
    kinds = dict.fromkeys((row["method"], row["grid"]) for row in rows)
    lines = [line_of([row for row in rows if (row["method"], row["grid"]) == kind]) for kind in kinds]
    return sorted(lines, key=lambda line: (line["bytes"], line["kl"][0]))


def line_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the line of a method and grid: means over its rows with their standard deviations."""
    first = rows[0]
    return {
        "method": first["method"], "grid": first["grid"], "seeds": len(rows),
        **{name: _spread([float(row[name]) for row in rows]) for name in FIGURES},
        "tokens": first["tokens"], "memory": max(row["memory"] for row in rows), "bytes": first["bytes"],
        "bits": 8 * first["bytes"] / first["weights"] if first["weights"] else None,
    }  # fmt: skip


def _spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _run(cell: Compression, out: Path) -> Row:
    said = {name: getattr(cell, name) for name in cell.__slots__}
    return {"cell": cell.name, **said, **in_process("edgetune.bench.compressing", said, cell.name, out)}
