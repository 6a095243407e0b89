"""Does a student of half the size learn more on its own responses? One teacher, one start, several lessons."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgetune.bench.cells import Row, run_cells
from edgetune.core.event_log import read_events
from edgetune.models.embedded import EMBEDDED
from edgetune.models.saving import save_model
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import Recipe, load_recipe
from edgetune.run import pipeline
from edgetune.run.pruning import Order, prune_prepared
from edgetune.run.stage import Model

TEACHER_STEPS, START_STEPS, STEPS = 180, 60, 120
"""Of the teacher on the records, of the pruned student on them before any lesson, and of a lesson."""
RATIO = 0.58
"""Of the weights of heads and channels that go, so that half of all weights stay."""
BATCH = 16
LESSONS: dict[str, dict[str, object]] = {
    "no teacher": {},
    "supervised, forward": {"beta": 0.0, "on_policy": 0.0},
    "supervised, reverse": {"beta": 1.0, "on_policy": 0.0},
    "half and half, beta 0.5": {"beta": 0.5, "on_policy": 0.5},
    "on-policy, forward": {"beta": 0.0, "on_policy": 1.0},
    "on-policy, reverse": {"beta": 1.0, "on_policy": 1.0},
}
"""By what the table calls them: settings of [distillation], by which the same student is taught."""
FIGURES = ("rouge_l", "loss", "seconds")


@dataclass(frozen=True, slots=True)
class Lesson:
    """One cell of the table.

    Args:
        what: of `LESSONS`.
        seed: of records, teacher, student and steps.
        rate: learning rate of the lesson.
        steps: of the lesson.
    """

    what: str
    seed: int
    rate: float
    steps: int

    @property
    def name(self) -> str:
        """Names the cell among all."""
        said = sha256(f"{self.what} {LESSONS[self.what]} {self.rate} {self.steps}".encode()).hexdigest()[:8]
        return f"distillation-{self.what.replace(' ', '-').replace(',', '')}-{self.seed}-{said}"


def cells_of(seeds: int, *, rate: float = 5e-4, steps: int = STEPS) -> list[Lesson]:
    """Return all lessons of all seeds; those of a seed share teacher, start and held-out records."""
    return [Lesson(what, seed, rate, steps) for seed in range(seeds) for what in LESSONS]


def distillation(
    cells: Iterable[Lesson], out: Path, *, jobs: int = 1, told: Callable[[Row], None]
) -> list[dict[str, Any]]:
    """Run the lessons and return one line each, with means and standard deviations over seeds.

    Args:
        cells: from `cells_of`.
        out: folder of `rows.jsonl`, which grows; what was interrupted goes on.
        jobs: lessons side by side, in threads of one process.
        told: called with every new row.
    """
    rows = run_cells(
        cells,
        out / "rows.jsonl",
        out / "runs",
        jobs=jobs,
        told=told,
        make=lambda cell, to: _taught(cell, out, to),
    )
    return [line_of([row for row in rows if row["what"] == what]) for what in LESSONS]


def line_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the line of a lesson."""
    return {
        "what": rows[0]["what"],
        "seeds": len(rows),
        **{name: spread([one[name] for one in rows]) for name in FIGURES},
    }


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation; 0 of one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def ahead(
    rows: Sequence[Mapping[str, Any]], one: str, other: str, figure: str = "rouge_l"
) -> tuple[float, float]:
    """Return how far one lesson is ahead of another over seeds, and the standard error of that.

        mean_i (a_i - b_i),   std_i (a_i - b_i) / sqrt(n)

    The error is infinite for one seed.
    """
    ours, theirs = (
        {row["seed"]: row[figure] for row in rows if row["what"] == name} for name in (one, other)
    )
    mean, deviation = spread([ours[seed] - theirs[seed] for seed in ours])
    return mean, deviation / len(ours) ** 0.5 if len(ours) > 1 else float("inf")


def _taught(cell: Lesson, out: Path, to: Path) -> Row:
    teacher, start = teacher_of(cell.seed, out), start_of(cell.seed, out)
    told = {} if not LESSONS[cell.what] else {"distillation.teacher": str(teacher)}
    told |= {f"distillation.{key}": value for key, value in LESSONS[cell.what].items()}
    told |= {"distillation.max_new_tokens": 48} if told else {}
    _, tuned, base = _tuned(str(start), cell.seed, cell.steps, cell.rate, to, told)
    return {
        "cell": cell.name, "what": cell.what, "seed": cell.seed, "rate": cell.rate, "steps": cell.steps,
        "base_loss": base["loss"], "base_rouge_l": base["rouge_l"],
        **{name: tuned[name] for name in FIGURES},
    }  # fmt: skip


def teacher_of(seed: int, out: Path) -> Path:
    """Return the folder of a seed's teacher: the embedded model, all weights tuned on the records."""
    folder = out / f"teacher-{seed}"
    if not (folder / "config.json").is_file():
        model, *_ = _tuned(EMBEDDED, seed, TEACHER_STEPS, 1e-3, out / "runs" / f"teacher-{seed}", {})
        _save(model, folder, seed, EMBEDDED)
    return folder


def start_of(seed: int, out: Path) -> Path:
    """Return the folder of a seed's student: its teacher pruned to half, then tuned a little on the records."""
    folder, pruned = out / f"student-{seed}", out / f"pruned-{seed}"
    teacher = teacher_of(seed, out)
    if not (pruned / "config.json").is_file():
        prepared = prepare(_recipe(str(teacher), seed, 1, 1e-3, {}))
        save_model(prune_prepared(prepared, Order(RATIO)), prepared.backbone.tokenizer, pruned, words=teacher)
    if not (folder / "config.json").is_file():
        model, *_ = _tuned(str(pruned), seed, START_STEPS, 1e-3, out / "runs" / f"student-{seed}", {})
        _save(model, folder, seed, str(pruned))
    return folder


def _save(model: Model, folder: Path, seed: int, source: str) -> None:
    backbone = prepare(_recipe(source, seed, 1, 1e-3, {})).backbone
    save_model(model.model, backbone.tokenizer, folder, words=backbone.folder)


def _tuned(
    source: str, seed: int, steps: int, rate: float, out: Path, told: Mapping[str, object]
) -> tuple[Model, Row, Row]:
    """Tune all weights on one device; return the model, its row and that of the base."""
    out.mkdir(parents=True, exist_ok=True)
    found = pipeline.run(_recipe(source, seed, steps, rate, told), out, stages=pipeline.TUNING, single=True)
    assert isinstance(found, Model)  # noqa: S101 - these stages end with one
    rows = {one["name"]: one for one in read_events(out / "events.jsonl") if one["event"] == "stage"}
    return found, rows["tuned"], rows["base"]


def _recipe(source: str, seed: int, steps: int, rate: float, told: Mapping[str, object]) -> Recipe:
    settings = {
        "seed": seed, "threads": 1, "model.source": source, "method.name": "fedavg", "method.learning_rate": rate,
        "method.local_steps": 20, "method.batch_size": BATCH, "method.micro_batch": 0,
        "federation.rounds": max(1, steps // 20), "federation.devices": 1, "federation.participation": 1.0,
        "evaluation.every": 1000, "data.source": EMBEDDED, **told,
    }  # fmt: skip
    return load_recipe(None, **{key.replace(".", "__"): value for key, value in settings.items()})
