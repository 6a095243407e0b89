"""Which directions learn as well as others? Held-out loss after equal steps (`make bench-learning bench-rank-one`).

Two tasks: Dolly on a small pretrained Llama, and the embedded corpus on the embedded model. A seed fixes the pool's
key, the draw of indices and the order of batches; all kinds of direction share it, so that they are compared in pairs.
The learning rate is chosen once a task by a sweep with fresh Rademacher directions only, on seeds of its own.
Every finished run is one line of `runs.jsonl` in the working folder and is never run again.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from edgetune.core.batch import Batch
from edgetune.core.errors import ConfigError, DataError, EdgetuneError, ModelError
from edgetune.core.files import writable_folder
from edgetune.core.keys import digest64, stream
from edgetune.data.corpus import device_records
from edgetune.data.encode import Example, batches, encode_all, padding_id
from edgetune.data.prompts import default_prompt
from edgetune.data.reading import load_records
from edgetune.data.records import Record, records_digest
from edgetune.federation.steps import draw_batches, take_steps
from edgetune.federation.worker import Worker
from edgetune.measure.evaluate import held_out_loss
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from edgetune.models.backbone import Backbone, load_backbone
from edgetune.models.embedded import EMBEDDED
from learning_studies import LEARNING, STUDIES, Study
from learning_tables import write_results

TASKS = ("dolly", "embedded")
SWEEP_SEED = 1000
"""First seed of the rate sweep, far from the measured ones."""
RECORDS = 1000
"""Training records of a task."""
MEASURED_AT = 4
"""Held-out losses of one run, at equal distances."""
DATA = Path(os.environ.get("EDGETUNE_DATA", "../shared/data"))
STORIES = DATA / "models/stories260K"


@dataclass(frozen=True, slots=True)
class Settings:
    """What all runs share.

    Args:
        steps: steps of a run, a multiple of MEASURED_AT.
        batch_size: records a step.
        tokens: longest record.
        held_out: records of the held-out sample, the same for every run of a task.
        eps: perturbation radius.
    """

    steps: int
    batch_size: int
    tokens: int
    held_out: int
    eps: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to choose directions; `pool` is K, or 0 for fresh ones."""

    kind: str
    pool: int

    @property
    def options(self) -> dict[str, object]:
        """Method options of this cell."""
        return {"directions": self.kind} | ({"pool": self.pool} if self.pool else {})


class Task:
    """A model with encoded training and held-out records; runs share the model and leave it as it was."""

    def __init__(self, name: str, backbone: Backbone, records: list[Record], settings: Settings) -> None:
        self.name, self.backbone, self.settings = name, backbone, settings
        tokenizer = backbone.tokenizer
        encoded = encode_all(records, tokenizer, default_prompt(tokenizer), settings.tokens)
        self.pad_id = padding_id(tokenizer)
        self.train: list[Example] = encoded[settings.held_out :]
        self.held_out: list[Batch] = list(batches(encoded[: settings.held_out], 16, self.pad_id))
        # Whatever could change a result is part of a run's identity.
        self.digest = f"{digest64(backbone.digest, records_digest(records), settings):016x}"
        self.base = held_out_loss(backbone.model, self.held_out).loss

    def run(self, cell: Cell, seed: int, rate: float) -> dict[str, Any]:
        """Take the steps of one run and return its line: held-out losses, dropped steps, seconds."""
        settings = self.settings
        method = with_options(
            tuning_method("fedkseed" if cell.pool else "mezo"),
            {**cell.options, "learning_rate": rate, "eps": settings.eps, "batch_size": settings.batch_size},
        )
        assert method.directions is not None
        keys = method.directions.draw(seed, 0, 0, settings.steps)
        drawn = draw_batches(self.train, settings.batch_size, self.pad_id, seed=seed, device=0)
        worker, start = Worker(self.backbone, method, seed), time.perf_counter()
        worker.tuned.reset(None)
        part, losses, dropped = settings.steps // MEASURED_AT, [], 0
        for first in range(0, settings.steps, part):
            dropped += take_steps(method, worker.tuned, drawn, keys[first : first + part], {}).dropped
            losses.append(held_out_loss(self.backbone.model, self.held_out).loss)
        seconds = time.perf_counter() - start
        worker.tuned.reset(None)
        worker.tuned.close()  # type: ignore[attr-defined]  # every target's handle has it
        return {"losses": losses, "dropped": dropped, "seconds": round(seconds, 2)}


class Runs:
    """Finished runs: one JSON line each; a line cut by a kill counts as not run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.done[row["id"]] = row

    def get(self, task: Task, cell: Cell, seed: int, rate: float) -> dict[str, Any]:
        """Return a run's line, from the file or by running it now."""
        row: dict[str, Any] = {
            "task": task.name,
            "kind": cell.kind,
            "pool": cell.pool,
            "seed": seed,
            "rate": rate,
        }
        name = f"{digest64(task.digest, json.dumps(row, sort_keys=True)):016x}"
        if name not in self.done:
            row["id"] = name
            row |= task.run(cell, seed, rate)
            # A leading newline separates the line from one that was cut.
            with self.path.open("a") as file:
                file.write(f"\n{json.dumps(row)}")
            self.done[name] = row
            where = f"K={cell.pool}" if cell.pool else "fresh"
            print(f"{task.name} {cell.kind} {where} seed {seed} lr {rate:g}: {row['losses'][-1]:.4f}"
                  f" in {row['seconds']} s", flush=True)  # fmt: skip
        return self.done[name]


def open_tasks(names: list[str], model: Path, data: Path, settings: Settings) -> Iterator[Task]:
    """Yield the tasks; missing files are refused before anything is loaded."""
    for name in names:
        if name not in TASKS:
            raise ConfigError(f"no task {name!r}", hint=f"one of {', '.join(TASKS)}")
    if "dolly" in names:
        if not data.is_file():
            raise DataError("no such file", where=data, hint="give Dolly's jsonl with --data")
        if not model.exists():
            raise ModelError("no such model", where=model, hint="give a folder or a GGUF file with --model")
    count = RECORDS + settings.held_out
    for name in names:
        if name == EMBEDDED:
            yield Task(name, load_backbone(EMBEDDED), device_records(count, 0), settings)
            continue
        records = load_records(data)
        order = stream(0, "records").permutation(len(records))[:count]
        yield Task(name, load_backbone(model), [records[int(index)] for index in order], settings)


def sweep(runs: Runs, task: Task, rates: list[float], seeds: int) -> tuple[float, dict[str, float]]:
    """Return the rate with the lowest mean held-out loss for fresh Rademacher directions, and all the means."""
    if len(rates) == 1:
        return rates[0], {}
    cell, chosen = Cell("rademacher", 0), range(SWEEP_SEED, SWEEP_SEED + seeds)
    means = {
        rate: statistics.mean(runs.get(task, cell, seed, rate)["losses"][-1] for seed in chosen)
        for rate in rates
    }
    finite = {rate: mean for rate, mean in means.items() if mean == mean}
    return min(finite, key=lambda rate: finite[rate]), {f"{rate:g}": mean for rate, mean in means.items()}


def measure(runs: Runs, tasks: list[Task], cells: list[Cell], seeds: int, rates: list[float], sweeps: int
            ) -> dict[str, Any]:  # fmt: skip
    """Run what is missing, seed by seed, so that a run cut short is balanced; return everything for the tables."""
    chosen = {task.name: sweep(runs, task, rates, sweeps) for task in tasks}
    rows = [
        runs.get(task, cell, seed, chosen[task.name][0])
        for seed in range(seeds)
        for task in tasks
        for cell in cells
    ]
    return {
        "tasks": {
            task.name: {
                "base_loss": task.base,
                "rate": chosen[task.name][0],
                "sweep": chosen[task.name][1],
                "weights": sum(weight.numel() for weight in task.backbone.model.parameters()),
            }
            for task in tasks
        },
        "runs": rows,
    }


def chosen_cells(study: Study, kinds: list[str], pools: list[int]) -> list[Cell]:
    """Return the cells of a study's columns, the fresh ones first; nothing chosen is everything."""
    labels = [column.label for column in study.columns]
    for one in kinds:
        if one not in labels:
            raise ConfigError(f"{study.name} has no kind {one!r}", hint=f"one of {', '.join(labels)}")
    columns = [column for column in study.columns if not kinds or column.label in kinds]
    sizes = [0, *(pools or study.pools)]
    return [Cell(column.kind(size), size) for size in sizes for column in columns if column.kind(size)]


def main(
    study: Annotated[str, typer.Option(help=f"The question: {', '.join(STUDIES)}.")] = LEARNING.name,
    out: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("docs/results"),
    image: Annotated[Path | None, typer.Option(help="The figure, PNG.  [default: docs/images/STUDY.png]")] = None,
    work: Annotated[Path | None, typer.Option(help="Folder of the finished runs.  [default: out/STUDY]")] = None,
    model: Annotated[Path, typer.Option(help="Of the Dolly task: a folder or a GGUF file.")] = STORIES,
    data: Annotated[Path, typer.Option(help="Dolly, jsonl.")] = DATA / "dolly/databricks-dolly-15k.jsonl",
    task: Annotated[list[str], typer.Option(help="dolly, embedded.")] = list(TASKS),  # noqa: B006
    kind: Annotated[list[str], typer.Option(help="Columns of the page; all if not given.")] = [],  # noqa: B006
    pool: Annotated[list[int], typer.Option(help="Pool sizes; the study's if not given.")] = [],  # noqa: B006
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 8,
    rate: Annotated[list[float], typer.Option(help="Rates of the sweep; one: no sweep.")] = [  # noqa: B006
        1e-5, 2e-5, 4e-5, 8e-5, 1.6e-4, 3.2e-4,
    ],
    sweeps: Annotated[int, typer.Option(help="Seeds of the sweep.")] = 2,
    steps: Annotated[int, typer.Option(help=f"Steps of a run, a multiple of {MEASURED_AT}.")] = 600,
    batch_size: Annotated[int, typer.Option(help="Records a step.")] = 2,
    tokens: Annotated[int, typer.Option(help="Longest record.")] = 64,
    held_out: Annotated[int, typer.Option(help="Held-out records.")] = 64,
    eps: Annotated[float, typer.Option(help="Perturbation radius.")] = 1e-3,
) -> None:  # fmt: skip
    """Run what is missing and write figures, page and picture of a study."""
    asked = STUDIES.get(study)
    if asked is None:
        raise ConfigError(f"no study {study!r}", hint=f"one of {', '.join(STUDIES)}")
    if steps < 1 or steps % MEASURED_AT or seeds < 2:
        raise ConfigError(f"steps must be a multiple of {MEASURED_AT}, and seeds at least 2")
    torch.set_num_threads(1)
    cells = chosen_cells(asked, kind, pool)
    settings = Settings(steps, batch_size, tokens, held_out, eps)
    tasks = list(open_tasks(task, model, data, settings))
    runs = Runs(writable_folder(work or Path("out") / asked.name) / "runs.jsonl")
    found = measure(runs, tasks, cells, seeds, rate, sweeps)
    found["settings"] = {name: getattr(settings, name) for name in Settings.__dataclass_fields__}
    print(write_results(asked, found, out, image or Path(f"docs/images/{asked.name}.png")))


if __name__ == "__main__":
    try:
        typer.run(main)
    except EdgetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
