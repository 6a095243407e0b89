"""Measure what a forward-only step needs beyond plain inference on the same batch, in fresh processes.

A random Llama is saved to a folder; one process runs forward passes on it, the others run FedKSeed steps with each
residency of the weights, all on the same tokens. Each reports the high-water mark of its resident memory while it
works, and what was resident before the model was loaded. Shared and file pages count as well.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

app = typer.Typer(add_completion=False)
PLAIN = "plain"
SIDES = (PLAIN, "fused", "streamed", "streamed-q8_0", "streamed-q4_0")


def batch_of(tokens: int, size: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and mask that all processes use."""
    ids = torch.randint(vocabulary, (size, tokens), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


@app.command()
def work(folder: Path, side: str, tokens: int = 64, size: int = 2, *, lingering: bool = False) -> None:
    """Run one side and print its figures as JSON (called by `main`)."""
    from edgetune.core.allocator import return_freed_blocks
    from edgetune.core.batch import Batch, response_loss
    from edgetune.core.quantised import PackedTensor
    from edgetune.directions.few import few_rows
    from edgetune.directions.kernel import compiled_level
    from edgetune.federation.steps import take_steps
    from edgetune.federation.worker import Worker
    from edgetune.measure.allocator import allocator_peak
    from edgetune.measure.memory import PeakMemory
    from edgetune.methods.tuning.fedkseed import METHOD
    from edgetune.models.backbone import load_backbone
    from edgetune.recipe.residency import RESIDENCIES
    from edgetune.tune import StreamedTuned

    if not lingering:
        return_freed_blocks()
    torch.set_num_threads(1)
    settled = load_backbone("embedded").model  # libraries settle before anything is measured
    with torch.no_grad():
        response_loss(settled, Batch(*(torch.ones(1, 4, dtype=torch.long),) * 3))
    before = psutil.Process().memory_info().rss
    backbone = load_backbone(folder)
    ids, mask = batch_of(tokens, size, backbone.model.config.vocab_size)
    batch = Batch(ids, mask, ids)
    found: dict[str, Any] = {
        "before": before,
        "base": sum(one.numel() * 4 for one in backbone.model.parameters()),
    }
    walks = (
        1 if side == PLAIN or ids.numel() > few_rows(compiled_level()) else 2
    )  # a step on a small batch takes both points in one walk
    walked = Batch(*(one.repeat(walks, 1) for one in (ids, mask, ids)))
    with torch.no_grad():
        found["activations"] = allocator_peak(lambda: response_loss(backbone.model, walked))
    worker = Worker(backbone, METHOD, 0, RESIDENCIES[side]) if side != PLAIN else None
    if worker is not None and isinstance(worker.tuned, StreamedTuned):
        found["base"] = sum(
            one.blocks.numel() if isinstance(one, PackedTensor) else one.numel() * one.element_size()
            for one in worker.tuned.base.values()
        )
    ctypes.CDLL(None).malloc_trim(0)  # what loading freed goes back to the system
    with PeakMemory() as memory:
        if worker is not None:
            take_steps(METHOD, worker.tuned, iter([batch] * 3), [1, 2, 3], {})
        else:
            with torch.no_grad():
                for _ in range(3):
                    response_loss(backbone.model, batch)
    print(json.dumps(found | {"peak": memory.peak_bytes, "exact": memory.exact}))


def measured(folder: str, side: str, tokens: int, size: int, lingering: bool) -> dict[str, int]:
    """Run one side in a fresh process."""
    command = [sys.executable, __file__, "work", folder, side, "--tokens", str(tokens), "--size", str(size)]
    command += ["--lingering"] if lingering else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@app.command()
def main(
    hidden: Annotated[int, typer.Option(help="Width.")] = 768,
    layers: Annotated[int, typer.Option(help="Decoder blocks.")] = 12,
    vocabulary: Annotated[int, typer.Option(help="Tokens.")] = 16000,
    tokens: Annotated[int, typer.Option(help="Tokens a record.")] = 64,
    size: Annotated[int, typer.Option(help="Records a batch.")] = 2,
    lingering: Annotated[bool, typer.Option(help="glibc's default, which keeps freed blocks.")] = False,
) -> None:
    """Compare all sides and print a Markdown table."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from edgetune.models.embedded import embedded_folder

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, tie_word_embeddings=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        model = LlamaForCausalLM(config)
        model.save_pretrained(name)
        AutoTokenizer.from_pretrained(embedded_folder()).save_pretrained(name)
        sizes = [weight.numel() * 4 for weight in model.parameters()]
        del model
        sides = {side: measured(name, side, tokens, size, lingering) for side in SIDES}
    plain = sides[PLAIN]["peak"]
    print(
        f"{sum(sizes) // 4:,} weights, largest tensor {max(sizes):,} bytes, batch {size} x {tokens} tokens"
        f"{', freed blocks kept' if lingering else ''}\n"
    )
    print("| weights | base | activations | peak less libraries | less activations, / base | above plain |")
    print("|---|---|---|---|---|---|")
    for side, found in sides.items():
        own = found["peak"] - found["before"]
        share = (own - found["activations"]) / found["base"]
        print(
            f"| {side} | {found['base']:,} | {found['activations']:,} | {own:,} | {share:.3f} "
            f"| {found['peak'] - plain:+,} |"
        )


if __name__ == "__main__":
    app()
