"""What does forward-only tuning give up? Held-out loss after equal CPU time, back-propagated LoRA beside it.

Dolly on a small pretrained Llama, one thread. Every method gets the same CPU seconds for every pair of learning rate
and batch size of its grid, and its best pair counts: the grids are as wide for all. Evaluation is not in the time.
"""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Annotated

import torch
import typer

from edgetune.core.errors import EdgetuneError
from edgetune.core.files import write_text_atomic
from edgetune.directions.kernel import describe_kernel
from edgetune.federation.steps import draw_batches, take_steps
from edgetune.federation.worker import Worker
from edgetune.measure.evaluate import held_out_loss
from edgetune.methods.catalogue import tuning_method
from edgetune.methods.options import with_options
from learning import DATA, Settings, Task, open_tasks

RATES = {"lora": (1e-3, 3e-3, 1e-2), "mezo": (5e-5, 1e-4, 2e-4), "fedkseed": (5e-5, 1e-4, 2e-4)}
SIZES = (2, 16)
MOST_STEPS = 20_000


def spend(task: Task, name: str, rate: float, size: int, seconds: float, seed: int) -> tuple[float, int]:
    """Return held-out loss and steps of one method after so many CPU seconds of steps."""
    options: dict[str, object] = {"learning_rate": rate, "batch_size": size}
    if name != "lora":
        options["eps"] = task.settings.eps
    method = with_options(tuning_method(name), options)
    own = replace(task.backbone, model=copy.deepcopy(task.backbone.model))
    worker = Worker(own, method, seed)
    worker.tuned.reset(None)
    keys = method.directions.draw(seed, 0, 0, MOST_STEPS) if method.directions else [0]
    drawn = draw_batches(task.train, size, task.pad_id, seed=seed, device=0)
    state, steps, start = method.local.start(worker.tuned), 0, time.process_time()
    while time.process_time() - start < seconds:
        take_steps(method, worker.tuned, islice(drawn, 1), [keys[steps % len(keys)]], state)
        steps += 1
    return held_out_loss(worker.tuned.model, task.held_out).loss, steps


def table(task: Task, seconds: float, seed: int) -> str:
    """Return the results as Markdown, worst method first."""
    rows = []
    for name, rates in RATES.items():
        found = {
            (rate, size): spend(task, name, rate, size, seconds, seed) for rate, size in product(rates, SIZES)
        }
        rate, size = min(found, key=lambda pair: found[pair][0] if found[pair][0] == found[pair][0] else 1e9)
        loss, steps = found[rate, size]
        every = ", ".join(f"{one:.3f}" for one, _ in found.values())
        rows.append((loss, f"| `{name}` | {loss:.3f} | {rate:g} | {size} | {steps:,} | {every} |"))
        print(rows[-1][1], flush=True)
    head = "| method | held-out loss | learning rate | batch | steps | all of its grid |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(row for _, row in sorted(rows, reverse=True))])


def main(
    out: Annotated[Path, typer.Option(help="Folder of the table.")] = Path("docs/results"),
    model: Annotated[Path, typer.Option(help="Model folder.")] = DATA / "models/stories260K",
    data: Annotated[Path, typer.Option(help="Dolly, jsonl.")] = DATA / "dolly/databricks-dolly-15k.jsonl",
    seconds: Annotated[float, typer.Option(help="CPU seconds of steps a run.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Directions, batches.")] = 0,
) -> None:
    """Write `equal-time.md`."""
    torch.set_num_threads(1)
    (task,) = open_tasks(["dolly"], model, data, Settings(0, 2, 64, 64, 1e-4))
    text = (
        f"# Equal CPU time\n\n`python benchmarks/equal_time.py`: Dolly on {model.name}, {len(task.train)} records to"
        f" train on, {seconds:g} CPU seconds a run, one thread, seed {seed}.\nBase: {task.base:.3f}. Every method's"
        f" best of {len(SIZES)} batch sizes and {len(RATES['lora'])} rates.\n\n{table(task, seconds, seed)}\n\n"
        f"Kernel: {describe_kernel()}. CPU times depend on the machine.\n"
    )
    write_text_atomic(out / "equal-time.md", text)


if __name__ == "__main__":
    try:
        typer.run(main)
    except EdgetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
