"""Measure what a MeZO step needs beyond plain inference on the same batch: whole-process peaks, in fresh processes.

A random Llama is saved to a folder; one process runs forward passes on it, another runs MeZO steps, both on the same
tokens. Each reports the high-water mark of its resident memory while it works. Shared and file pages count as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer

app = typer.Typer(add_completion=False)


def batch_of(tokens: int, size: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids and mask that both processes use."""
    ids = torch.randint(vocabulary, (size, tokens), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


@app.command()
def work(folder: Path, mezo: bool = False, tokens: int = 64, size: int = 2) -> None:
    """Run one side and print its peak as JSON (called by `main`)."""
    from edgetune.core.batch import Batch, response_loss
    from edgetune.measure.memory import PeakMemory
    from edgetune.methods.tuning.mezo import METHOD
    from edgetune.models.backbone import load_backbone
    from edgetune.run.steps import take_steps
    from edgetune.run.worker import Worker

    torch.set_num_threads(1)
    backbone = load_backbone(folder)
    ids, mask = batch_of(tokens, size, backbone.model.config.vocab_size)
    batch = Batch(ids, mask, ids)
    with torch.no_grad():
        response_loss(backbone.model, batch)  # libraries settle before either side is measured
    with PeakMemory() as memory:
        if mezo:
            worker = Worker(backbone, METHOD, 0)
            take_steps(METHOD, worker.tuned, iter([batch] * 3), [1, 2, 3], {})
        else:
            with torch.no_grad():
                for _ in range(3):
                    response_loss(backbone.model, batch)
    print(json.dumps({"peak_bytes": memory.peak_bytes, "exact": memory.exact}))


@app.command()
def main(
    hidden: Annotated[int, typer.Option(help="Width.")] = 768,
    layers: Annotated[int, typer.Option(help="Decoder blocks.")] = 12,
    vocabulary: Annotated[int, typer.Option(help="Tokens.")] = 16000,
    tokens: Annotated[int, typer.Option(help="Tokens a record.")] = 64,
    size: Annotated[int, typer.Option(help="Records a batch.")] = 2,
) -> None:
    """Compare the two sides and print the difference beside the largest tensor."""
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
        peaks = {}
        for side in ("plain", "mezo"):
            flag = "--mezo" if side == "mezo" else "--no-mezo"
            command = [sys.executable, __file__, "work", name, flag]
            done = subprocess.run(
                [*command, "--tokens", str(tokens), "--size", str(size)],
                check=True,
                capture_output=True,
                text=True,
            )
            peaks[side] = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
    above = peaks["mezo"] - peaks["plain"]
    print(f"model: {sum(sizes) / 4:,.0f} weights, {sum(sizes):,} bytes; largest tensor {max(sizes):,} bytes")
    print(f"peak resident memory: plain inference {peaks['plain']:,}, MeZO {peaks['mezo']:,}")
    print(f"MeZO above plain inference: {above:,} bytes = {above / max(sizes):.2f} largest tensors")


if __name__ == "__main__":
    app()
