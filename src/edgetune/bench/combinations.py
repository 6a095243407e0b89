"""The survey's next check: every tuning method with every compression, and whether to prune before tuning or after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.bench.cells import Cell, Row
from edgetune.bench.combining import FLOAT
from edgetune.bench.federation import settings_of, spread
from edgetune.core.errors import DataError
from edgetune.models.embedded import EMBEDDED
from edgetune.recipe.recipe import load_recipe

TUNINGS = ("none", "fedkseed", "fedit", "fedavg")
"""No tuning, forward passes only, LoRA and all weights by back-propagation."""
WAYS = (FLOAT, "rtn", "optq", "gptaq", "joint")
ORDERS: Mapping[str, tuple[str, ...]] = {
    "tune": ("base", "tune"),
    "prune, tune": ("base", "prune", "tune"),
    "tune, prune": ("base", "tune", "prune"),
}
"""What happens before quantisation, by name; pruning is a fifth of the blocks' matrices, compensated, not recovered."""
WORK = 4_000
"""Forward passes of a record that each asked device does in all."""


@dataclass(frozen=True, slots=True)
class Combination:
    """One tuned model, compressed in every way.

    Args:
        cell: model, data, tuning method and seed.
        order: one of `ORDERS`.
        ways: compressions.
    """

    cell: Cell
    order: str
    ways: tuple[str, ...]

    @property
    def name(self) -> str:
        """Names it among all."""
        return f"{self.cell.name}-{self.order.replace(', ', '-')}-{'-'.join(self.ways)}"

    @property
    def stages(self) -> list[str]:
        """The stages before compression; without tuning there is one order."""
        return [stage for stage in ORDERS[self.order] if stage != "tune" or self.cell.method != "none"]


def combinations_of(
    seeds: int,
    *,
    model: str = EMBEDDED,
    data: str | None = None,
    tunings: Sequence[str] = TUNINGS,
    ways: Sequence[str] = WAYS,
    work: int = WORK,
) -> list[Combination]:
    """Return what is run on one model and its data; `settings_of` of the table of systems says at which rates.

    Args:
        seeds: repeats.
        model: embedded, or a folder.
        data: a file or folder of records; the embedded ones if not given.
        tunings, ways: names.
        work: as there.
    """
    task = "" if data is None else Path(data).stem
    found = []
    for tuning in tunings:
        settings = settings_of("fedkseed" if tuning == "none" else tuning, model, work)
        if data is not None and "dolly" not in task:  # only Dolly has a category to hold out
            settings.pop("data.held_out_category", None)
        for order in ORDERS:
            if tuning == "none" and order == "prune, tune":
                continue
            for seed in range(seeds):
                cell = Cell("combination", model, tuning, seed, settings, data, {"task": task})
                found.append(Combination(cell, order, tuple(ways)))
    return found


def row_of(one: Combination, out: Path) -> Row:
    """Run a combination in a process of its own and return its row.

    Raises:
        DataError: if the run failed, with what it said.
    """
    cell = one.cell
    said = {"seed": cell.seed, "threads": 1, **cell.settings, "evaluation.answer_every": 0}
    texts = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in said.items()]
    source = {} if cell.data is None else {"data__source": cell.data}
    method = {} if cell.method == "none" else {"method__name": cell.method}
    recipe = load_recipe(None, texts, model__source=cell.model, **method, **source)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "cell.json"
    spec = {"recipe": recipe.model_dump(), "stages": one.stages, "ways": one.ways}
    path.write_text(json.dumps(spec), "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "edgetune.bench.combining", str(path), str(out / "run")],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if done.returncode:
        raise DataError(f"a run failed: {done.stderr.strip()[-400:]}", where=one.name)
    return {
        "cell": one.name, "model": Path(cell.model).name, "task": cell.told["task"], "tuning": cell.method,
        "order": one.order, "seed": cell.seed, **json.loads(done.stdout.splitlines()[-1]),
    }  # fmt: skip


def lines_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one line a tuning, order and compression of one task: means over seeds and standard deviations."""
    lines = []
    for tuning, order in dict.fromkeys((row["tuning"], row["order"]) for row in rows):
        mine = [row for row in rows if (row["tuning"], row["order"]) == (tuning, order)]
        for way in mine[0]["ways"]:
            each = [row["ways"][way] for row in mine]
            lines.append({
                "tuning": tuning, "order": order, "way": way, "seeds": len(mine),
                **{key: spread(each, key) for key in ("loss", "rouge_l", "size_bytes", "above_bytes")},
                "tuning_peak": spread(mine, "peak_memory_bytes"),
            })  # fmt: skip
    return lines


def order_verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return, by tuning and compression, how much more loss pruning after tuning has than pruning before it.

        d = mean over seeds of loss(tune, prune, quantise) - loss(prune, tune, quantise), with its standard error

    Args:
        rows: of one task.
    """
    by = {(row["tuning"], row["order"], row["seed"]): row["ways"] for row in rows}
    found = []
    for tuning in dict.fromkeys(row["tuning"] for row in rows):
        pairs = [
            (by[tuning, "tune, prune", seed], by[tuning, "prune, tune", seed])
            for seed in sorted({row["seed"] for row in rows})
            if (tuning, "tune, prune", seed) in by and (tuning, "prune, tune", seed) in by
        ]
        for way in pairs[0][0] if pairs else ():
            apart = [{"d": after[way]["loss"] - before[way]["loss"]} for after, before in pairs]
            mean, deviation = spread(apart, "d")
            found.append({"tuning": tuning, "way": way, "mean": mean, "error": deviation / len(apart) ** 0.5})
    return found
