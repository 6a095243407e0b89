"""Every federated system at equal device work, on one model and its data: quality, bytes, memory, time."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgetune.bench.cells import Cell, Row, run_cells
from edgetune.core.errors import DataError
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.models.embedded import EMBEDDED
from edgetune.recipe.method_section import AUTO
from edgetune.recipe.open_settings import packaged_recipe
from edgetune.recipe.recipe import Recipe, load_recipe

WORK = 8_000
"""Forward passes of a record that each asked device does in all; a backward pass counts as two."""
HELD_OUT_CATEGORY = "summarization"
PRIVATE: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "stories260K": {
        "dpzero": {"learning_rate": 2.6e-5, "eps": 3e-3, "clip": 60.0},
        "dp_aggzo": {"learning_rate": 3e-4, "eps": 3e-3, "clip": 100.0},
    }
}
"""Rates of private systems on a model other than the embedded one, by the name of its folder: no run may look for one
on hidden records. The best of three of dpzero and of five of dp_aggzo, by the loss of seed 0 on held-out records, which
nobody hides."""


def cells_of(
    methods: Sequence[str], seeds: int, *, model: str = EMBEDDED, data: str | None = None, work: int = WORK
) -> list[Cell]:
    """Return the cells of a model: as many rounds of a method's packaged recipe as the work allows.

        rounds = work / (local steps x records a step x passes a step)

    Args:
        methods: public names with a packaged recipe.
        seeds: repeats.
        model: embedded, or a folder; then rates are found by each run.
        data: a file of records with categories, of which summarization is held out; none for the embedded ones.
        work: see above.
    """
    return [
        Cell("federation", model, name, seed, settings_of(name, model, work), data)
        for name in methods
        for seed in range(seeds)
    ]


def runnable(methods: Sequence[str], model: str) -> list[str]:
    """Return those of the methods that have a learning rate on a model, or may look for one there."""
    told = PRIVATE.get(Path(model).name, {})
    return [name for name in methods if model == EMBEDDED or name in told or not tuning_method(name).private]


def settings_of(name: str, model: str, work: int) -> dict[str, object]:
    """Return the recipe keys of a method's cell."""
    path = packaged_recipe(name)
    recipe = load_recipe(path) if path else Recipe()
    own = recipe.method.model_dump(exclude={"name"}, exclude_none=True)
    if model != EMBEDDED:
        own |= dict.fromkeys(("learning_rate", "eps"), AUTO)
        own.pop("variance_threshold", None)  # a size of slopes of the embedded model
    method = with_options(tuning_method(name), {key: value for key, value in own.items() if value != AUTO})
    each = method.local_steps * method.batch_size * method.estimate.passes
    own |= PRIVATE.get(Path(model).name, {}).get(name, {})
    said = {f"method.{key}": value for key, value in own.items() if value != AUTO}
    rounds = max(1, round(work / each))
    more = {
        "data.held_out_category": HELD_OUT_CATEGORY,
        "data.held_out": 64,
        "data.max_tokens": 192,
        "split.alpha": 0.5,
    }
    return {
        **said, "federation.rounds": rounds, "federation.participation": 0.1, "federation.devices": 20,
        "evaluation.every": rounds, "evaluation.answer_every": 0, **({} if model == EMBEDDED else more),
    }  # fmt: skip


def memory_above(cell: Cell, folder: Path) -> int:
    """Return the bytes above inference of a cell's device, measured over a few steps in a process of its own."""
    settings = {**cell.settings, "method.local_steps": 3}
    texts = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    source = {} if cell.data is None else {"data__source": cell.data}
    recipe = load_recipe(None, texts, method__name=cell.method, model__source=cell.model, threads=1, **source)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cell.name}.json"
    path.write_text(recipe.model_dump_json(), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "edgetune.bench.above", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DataError(f"measuring memory failed: {done.stderr.strip()[-400:]}", where=cell.name)
    return int(json.loads(done.stdout.splitlines()[-1])["above"])


def federation(cells: Sequence[Cell], out: Path, *, jobs: int, told: Callable[[Row], None]) -> list[Row]:
    """Run the cells and return one line a model and method: means over the seeds, with their standard deviations.

    Args:
        cells: from `cells_of`.
        out: folder of `systems.jsonl`, which grows, and of the runs.
        jobs: processes side by side.
        told: called with every new row.
    """
    rows = run_cells(cells, out / "systems.jsonl", out / "runs", jobs=jobs, told=told)
    lines = []
    for model, method in dict.fromkeys((row["model"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["method"]) == (model, method)]
        first = next(cell for cell in cells if cell.method == method and Path(cell.model).name == model)
        lines.append(line_of(mine) | {"above": memory_above(first, out / "runs")})
    return lines


def line_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the line of a model and method: means over its rows, and what devices sent and received."""
    newcomers = [size for row in rows for size in row["down"][0]]
    later = [size for row in rows for sizes in row["down"][1:] for size in sizes]
    return {
        "model": rows[0]["model"], "method": rows[0]["method"], "seeds": len(rows), "rounds": rows[0]["rounds"],
        **{name: spread(rows, name) for name in ("base_loss", "loss", "rouge_l", "seconds")},
        "up": max(size for row in rows for sizes in row["up"] for size in sizes),
        "down_first": max(newcomers), "down_later": round(statistics.mean(later)) if later else None,
        "total": round(statistics.mean(sum(map(sum, row["up"])) + sum(map(sum, row["down"])) for row in rows)),
    }  # fmt: skip


def spread(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Return mean and standard deviation of a column; the latter is 0 of one row."""
    values = [float(row[name]) for row in rows]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
