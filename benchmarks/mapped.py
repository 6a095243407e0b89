"""Measure the peak of `edgetune tune` over a GGUF file whose matrices stay in it, in fresh processes.

A random Llama of SmolLM2-135M's shape is written as a file in 4-bit blocks, its embedding in Q8_0. Every process first
runs the same command on the embedded model, so that all libraries are loaded; then its high-water mark is reset, and it
tunes on the file. The file's own pages count as soon as they are touched.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

app = typer.Typer(add_completion=False)
TYPES = ("Q4_0", "Q4_1")
BATCHES = ((1, 16), (8, 128))


def write_file(path: Path, grid: str) -> None:
    """Write the random model with the embedded one's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from edgetune.compress.grid import AbsMax
    from edgetune.compress.rounding import round_to_nearest
    from edgetune.core.quantised import GRIDS
    from edgetune.export.gguf_file import write_gguf
    from edgetune.models.backbone import load_backbone

    embedded = load_backbone("embedded")
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.generation_config = embedded.model.generation_config
    blocks = {
        name: round_to_nearest(weight, GRIDS["Q8_0" if "embed" in name else grid], AbsMax(), name=name)
        for name, weight in model.named_parameters()
        if weight.dim() == 2
    }
    write_gguf(path, model, embedded.tokenizer, quantised=blocks, float_type="F32")


@app.command()
def work(
    file: str, method: str, directions: str, size: int, tokens: int, data: str, *, held: bool = False
) -> None:
    """Tune on one file and print figures as JSON (called by `main`)."""
    from edgetune.bench.step import random_batch  # noqa: F401 - libraries settle
    from edgetune.core.allocator import return_freed_blocks, trim
    from edgetune.core.batch import Batch, response_loss
    from edgetune.data.encode import batches
    from edgetune.measure.allocator import allocator_peak
    from edgetune.measure.machine import resident_bytes
    from edgetune.measure.memory import PeakMemory
    from edgetune.models.backbone import load_backbone
    from edgetune.recipe import prepare as preparing
    from edgetune.recipe.recipe import load_recipe
    from edgetune.run.pipeline import TUNING, run
    from edgetune.tune.stacked import TOGETHER

    if held:
        preparing.load_backbone = lambda *given, matrices=True, **named: load_backbone(*given, **named)  # type: ignore[attr-defined]
    return_freed_blocks()
    settings: dict[str, Any] = {
        "model__residency": "streamed", "data__source": data, "data__max_tokens": tokens, "data__records": 64,
        "data__held_out": 4, "data__calibration": 4, "evaluation__batch_size": 1, "evaluation__max_new_tokens": 4,
        "evaluation__samples": 0, "federation__rounds": 1, "federation__devices": 1, "threads": 1,
        "method__name": method, "method__directions": directions, "method__local_steps": 2,
        "method__batch_size": size, "method__learning_rate": 1e-7,
    }  # fmt: skip
    settings |= {"method__eps": 1e-3} if method == "fedkseed" else {}
    with tempfile.TemporaryDirectory() as out:
        run(load_recipe(None, [], **settings), Path(out) / "warm", stages=TUNING, single=True)
        gc.collect()
        trim()
        before, recipe = resident_bytes(), load_recipe(None, [], **settings, model__source=file)
        with PeakMemory() as memory:
            run(recipe, Path(out) / "run", stages=TUNING, single=True)
    prepared = preparing.prepare(recipe)
    batch = next(iter(batches(prepared.devices[0], size, prepared.pad_id)))
    times = (
        2 if method == "fedkseed" and 2 * batch.input_ids.numel() <= TOGETHER else 1
    )  # points that share a walk
    walked = Batch(*(one.repeat(times, 1) for one in (batch.input_ids, batch.attention_mask, batch.labels)))
    plain = load_backbone(file).model
    with torch.no_grad():
        activations = allocator_peak(lambda: response_loss(plain, walked))
    print(json.dumps({"peak": memory.peak_bytes - before, "activations": activations}))


@app.command()
def main(
    data: Annotated[str, typer.Option(help="Records long enough to fill the batches.")] = "embedded",
    directions: Annotated[str, typer.Option(help="Kind of pool.")] = "rank_one_pool",
    method: Annotated[str, typer.Option(help="fedkseed or fedskip.")] = "fedkseed",
    file: Annotated[Path | None, typer.Option(help="A GGUF file to take instead of random ones.")] = None,
) -> None:
    """Compare a model without its matrices with one that holds them, and print a Markdown table."""
    print(
        "| file | batch | model | file, MB | activations | peak less libraries | less file and activations |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for grid in TYPES if file is None else (file.stem,):
            path = file or Path(folder) / f"{grid}.gguf"
            if file is None:
                write_file(path, grid)
            stored = path.stat().st_size
            for size, tokens in BATCHES:
                for held in (True, False) if (size, tokens) == BATCHES[0] else (False,):
                    command = [
                        sys.executable,
                        __file__,
                        "work",
                        str(path),
                        method,
                        directions,
                        str(size),
                        str(tokens),
                        data,
                    ]
                    done = subprocess.run(
                        [*command, *(["--held"] if held else [])], check=True, capture_output=True, text=True
                    )
                    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
                    own = found["peak"] - stored - found["activations"]
                    numbers = (stored, found["activations"], found["peak"], own)
                    said = " | ".join(f"{one / 1e6:.1f}" for one in numbers)
                    side = "in float32" if held else "in the file"
                    print(f"| {grid} | {size} x {tokens} | {side} | {said} |", flush=True)


if __name__ == "__main__":
    app()
