"""Measure steps of `fedskip` over a GGUF file, in fresh processes: CPU seconds, and the peak of the process.

Random tokens, one thread, four steps. Every process first takes a step over the embedded model, so that all libraries
are loaded; then its high-water mark is reset. The file's own pages count as soon as they are touched.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from skips import WHOLE, logits_at_once

app = typer.Typer(add_completion=False)
SIDES = ("the mapped file", "weights in memory", "weights in memory, gradients of matrices")
STEPS = 4


@app.command()
def work(file: str, side: str, size: int, tokens: int, responses: int) -> None:
    """Take the steps on one side and print figures as JSON (called by `main`)."""
    from edgetune.core.allocator import return_freed_blocks, trim
    from edgetune.core.batch import IGNORED, Batch, response_loss
    from edgetune.core.keys import pool_key
    from edgetune.directions.space import BoundSpace
    from edgetune.measure.allocator import allocator_peak
    from edgetune.measure.machine import resident_bytes
    from edgetune.measure.memory import PeakMemory
    from edgetune.methods.catalogue import tuning_method
    from edgetune.models.backbone import load_backbone
    from edgetune.tune.own import OwnWeights

    return_freed_blocks()
    torch.set_num_threads(1)
    method: Any = tuning_method("fedskip")
    side, whole = side.removesuffix(WHOLE), side.endswith(WHOLE)
    seconds: dict[str, list[float]] = {"forward": [], "step": []}

    def open_on(source: str) -> tuple[Any, Batch]:
        backbone = load_backbone(source, matrices=side != SIDES[0])
        space = BoundSpace(method.directions.kind, pool_key(0), pooled=True)
        if backbone.base is not None:
            tuned = method.target.stream(backbone.model, space, backbone.base)
        elif side == SIDES[2]:
            tuned = OwnWeights.open(method.target, backbone.model, space, 0)
        else:
            tuned = method.target.open(backbone.model, space, 0)
        many: int = backbone.model.config.vocab_size
        ids = torch.randint(many, (size, tokens), generator=torch.Generator().manual_seed(0))
        labels = ids.clone()
        labels[:, : tokens - responses] = IGNORED
        return tuned, Batch(ids, torch.ones_like(ids), labels)

    def forward(tuned: Any, batch: Batch) -> None:
        with torch.no_grad():
            response_loss(tuned.model, batch)

    def take(tuned: Any, batch: Batch) -> None:
        with logits_at_once() if whole else nullcontext():
            found = method.estimator(tuned, response_loss, batch, 1)
        method.local.step(tuned, found.update.scaled(0.0), method.local.start(tuned))

    def timed(name: str, tuned: Any, batch: Batch) -> None:
        begun = time.process_time()
        (forward if name == "forward" else take)(tuned, batch)
        seconds[name].append(time.process_time() - begun)

    take(*open_on("embedded"))
    gc.collect()
    trim()
    before = resident_bytes()
    with PeakMemory() as memory:
        tuned, batch = open_on(file)
        for _ in range(STEPS):
            timed("step", tuned, batch)
    for _ in range(STEPS):
        timed("forward", tuned, batch)
    print(
        json.dumps(
            {name: statistics.median(found) for name, found in seconds.items()}
            | {
                "peak": memory.peak_bytes - before,
                "activations": allocator_peak(lambda: forward(tuned, batch)),
            }
            | {"allocated": allocator_peak(lambda: take(tuned, batch))}
        )
    )


@app.command()
def main(
    file: Annotated[Path, typer.Argument(help="A GGUF file in 4-bit blocks.")],
    size: Annotated[int, typer.Option(help="Records a batch.")] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens a record.")] = 128,
    responses: Annotated[int, typer.Option(help="Tokens at a record's end that are its response.")] = 32,
) -> None:
    """Compare bases, each with chunks and with the logits of all positions at once, and print a Markdown table."""
    print(
        "| fedskip over | forward pass, CPU s | step, CPU s | torch allocates: forward pass, step, MB | peak, MB |"
    )
    print("|---|---|---|---|---|")
    for side in SIDES:
        for name in (side + WHOLE, side):
            command = [
                sys.executable,
                __file__,
                "work",
                str(file),
                name,
                str(size),
                str(tokens),
                str(responses),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
            times = f"{found['forward']:.1f} | {found['step']:.1f}"
            memory = f"{found['activations'] / 1e6:.0f}, {found['allocated'] / 1e6:.0f} | {found['peak'] / 1e6:.0f}"
            print(f"| {name} | {times} | {memory} |", flush=True)


if __name__ == "__main__":
    app()
