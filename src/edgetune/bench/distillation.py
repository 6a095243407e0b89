"""Does a student of half the size learn more on its own responses? One teacher, one start, several lessons."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from edgetune.bench.cells import Row, run_cells
from edgetune.core.event_log import read_events
from edgetune.core.files import write_text_atomic
from edgetune.data.corpus import device_records
from edgetune.models.backbone import load_backbone
from edgetune.models.embedded import EMBEDDED
from edgetune.models.saving import save_model
from edgetune.recipe.prepare import prepare
from edgetune.recipe.recipe import Recipe, load_recipe
from edgetune.run import pipeline
from edgetune.run.pruning import prune_prepared
from edgetune.run.stage import Model

TEACHER_STEPS, START_STEPS, STEPS = 160, 40, 60
"""Of the teacher on all records, of the pruned student on its few before any lesson, and of a lesson."""
RECORDS, FEW, HELD_OUT = 1000, 128, 300
"""What the teacher was tuned on, how many of those the student has, and on how many others all are measured."""
RATIO = 0.58
"""Of the weights of heads and channels that go, so that half of all weights stay."""
BATCH = 16
FEW_KNOWN, ALL_KNOWN, PROMPTS = "few answers", "all answers", "all prompts, few answers"
"""What a lesson may read: the student's own records, all of the teacher's, or the prompts of those."""
LESSONS: dict[str, tuple[str, dict[str, object]]] = {
    "no teacher": (FEW_KNOWN, {}),
    "supervised, forward": (FEW_KNOWN, {"beta": 0.0, "on_policy": 0.0}),
    "supervised, reverse": (FEW_KNOWN, {"beta": 1.0, "on_policy": 0.0}),
    "on-policy, reverse, own prompts": (FEW_KNOWN, {"beta": 1.0, "on_policy": 1.0, "regenerate_every": 4}),
    "on-policy, reverse": (PROMPTS, {"beta": 1.0, "on_policy": 1.0, "regenerate_every": 4}),
    "supervised, forward, all answers": (ALL_KNOWN, {"beta": 0.0, "on_policy": 0.0}),
}
"""By what the table calls them: what may be read, and settings of [distillation], by which one student is taught."""
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
    """Return how far one lesson is ahead of another over the seeds of both, and the standard error of that.

        mean_i (a_i - b_i),   std_i (a_i - b_i) / sqrt(n)

    The error is infinite for one seed.
    """
    ours, theirs = (
        {row["seed"]: row[figure] for row in rows if row["what"] == name} for name in (one, other)
    )
    both = sorted(ours.keys() & theirs.keys())
    mean, deviation = spread([ours[seed] - theirs[seed] for seed in both])
    return mean, deviation / len(both) ** 0.5 if len(both) > 1 else float("inf")


def _taught(cell: Lesson, out: Path, to: Path) -> Row:
    teacher, start = teacher_of(cell.seed, out), start_of(cell.seed, out)
    known, settings = LESSONS[cell.what]
    told: dict[str, object] = {} if not settings else {"distillation.teacher": str(teacher)}
    told |= {f"distillation.{key}": value for key, value in settings.items()}
    told |= {"distillation.max_new_tokens": 48} if told else {}
    told |= {"method.schedule": "cosine"}
    _, tuned, base = _tuned(
        str(start),
        cell.seed,
        cell.steps,
        cell.rate,
        to,
        _data(cell.seed, FEW if known == FEW_KNOWN else RECORDS, out) | told,
    )
    return {
        "cell": cell.name, "what": cell.what, "seed": cell.seed, "rate": cell.rate, "steps": cell.steps,
        "base_loss": base["loss"], "base_rouge_l": base["rouge_l"],
        **{name: tuned[name] for name in FIGURES},
    }  # fmt: skip


def teacher_of(seed: int, out: Path) -> Path:
    """Return the folder of a seed's teacher: the embedded model, all weights tuned on the records."""
    folder = out / f"teacher-{seed}"
    if not (folder / "config.json").is_file():
        told = _data(seed, RECORDS, out) | {"method.schedule": "cosine"}
        model, *_ = _tuned(EMBEDDED, seed, TEACHER_STEPS, 1e-3, out / "runs" / f"teacher-{seed}", told)
        _save(model, folder, EMBEDDED)
    return folder


def start_of(seed: int, out: Path) -> Path:
    """Return the folder of a seed's student: its teacher pruned to half, then tuned a little on the records."""
    folder, pruned = out / f"student-{seed}", out / f"pruned-{seed}"
    teacher, told = teacher_of(seed, out), _data(seed, FEW, out)
    if not (pruned / "config.json").is_file():
        recipe = _recipe(str(teacher), seed, 1, 1e-3, {**told, "pruning.ratio": RATIO})
        prepared = prepare(recipe, split=False)
        found = prune_prepared(prepared, prepared.backbone.model)
        save_model(found, prepared.backbone.tokenizer, pruned, words=teacher)
    if not (folder / "config.json").is_file():
        model, *_ = _tuned(
            str(pruned),
            seed,
            START_STEPS,
            1e-3,
            out / "runs" / f"student-{seed}",
            told | {"method.schedule": "cosine"},
        )
        _save(model, folder, str(pruned))
    return folder


def _data(seed: int, many: int, out: Path) -> dict[str, object]:
    """Write a seed's records once, the first `many` of them and those that are held out; return what names them."""
    records, found = device_records(RECORDS + HELD_OUT, seed), dict[str, object]()
    shares = {"data.source": ("records", records[:many]), "data.test": ("test", records[RECORDS:])}
    for key, (what, some) in shares.items():
        path = out / f"{what}-{seed}-{len(some)}.jsonl"
        if not path.exists():
            fields = ("instruction", "context", "response", "category")
            lines = [json.dumps({name: getattr(one, name) for name in fields}) + "\n" for one in some]
            write_text_atomic(path, "".join(lines))
        found[key] = str(path)
    return found


def _save(model: Model, folder: Path, source: str) -> None:
    backbone = load_backbone(source)
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
    settings: dict[str, Any] = {
        "seed": seed, "threads": 1, "model.source": source, "method.name": "fedavg", "method.learning_rate": rate,
        "method.local_steps": 20, "method.batch_size": BATCH, "method.micro_batch": 0,
        "federation.rounds": max(1, steps // 20), "federation.devices": 1, "federation.participation": 1.0,
        "evaluation.every": 1000, "evaluation.samples": 0, **told,
    }  # fmt: skip
    return load_recipe(None, (), **{key.replace(".", "__"): value for key, value in settings.items()})
