"""Measure a step of methods on one batch: CPU seconds beside a forward pass of it, and what torch allocates beside it.

A random Llama, one thread, all sides in turn in one process; medians of several turns. With `--whole` every step that
takes gradients is measured once more with the logits of all positions at once, as it was before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer

METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "fedkseed": ("fedkseed", {}),
    "fedskip": ("fedskip", {}),
    "fedskip over Q4_0 blocks": ("fedskip", {}),
    "fedskip, Hadamard pool": ("fedskip", {"directions": "hadamard"}),
    "fedsubspace": ("fedsubspace", {}),
    "fedsubspace over Q4_0 blocks": ("fedsubspace", {}),
    "fedsubspace, recompute = false": ("fedsubspace", {"recompute": False}),
    "skipgrad": ("skipgrad", {}),
    "lora": ("lora", {}),
    "fedavg": ("fedavg", {}),
}
"""Method and options by the name of the row."""
WHOLE = ", all logits at once"
"""What the name of a row ends in that is measured without chunks."""
PACKED = ("fedskip over Q4_0 blocks", "fedsubspace over Q4_0 blocks")
"""Rows whose base is packed."""


def sides_of(config: Any, batch: Any, rows: list[str]) -> dict[str, Callable[[], object]]:
    """Return what is measured, by name; each has a model of its own, with the same weights."""
    from transformers import LlamaForCausalLM

    from edgetune.core.batch import response_loss
    from edgetune.core.keys import pool_key
    from edgetune.core.quantised import Q4_0, whole_blocks
    from edgetune.directions.space import BoundSpace
    from edgetune.federation.residency import pack_tensor
    from edgetune.methods.catalogue import tuning_method
    from edgetune.methods.options import with_options

    def model() -> Any:
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval().requires_grad_(False)

    def blocks() -> dict[str, Any]:
        return {
            name: pack_tensor(one.detach(), Q4_0, name) if whole_blocks(one.shape) else one.detach()
            for name, one in model().named_parameters()
        }

    def step(row: str) -> Callable[[], object]:
        name, options = METHODS[row]
        method = with_options(tuning_method(name), {**options, "learning_rate": 0.0, "micro_batch": 0})
        kind = method.directions.kind if method.directions else None
        space = BoundSpace(kind, pool_key(0)) if kind else None
        target: Any = method.target
        tuned: Any = (
            target.stream(model(), space, blocks()) if row in PACKED else target.open(model(), space, 0)
        )
        state = method.local.start(tuned)

        def take() -> object:
            found = method.estimator(tuned, response_loss, batch, 1)
            method.local.step(tuned, found.update, state)
            return found.loss

        return take

    plain = model()

    def forward() -> object:
        with torch.no_grad():
            return float(response_loss(plain, batch))

    return {"forward pass": forward, **{name: step(name) for name in rows}}


@contextmanager
def logits_at_once() -> Iterator[None]:
    """While entered, gradients of the loss are taken through the logits of all positions."""
    from edgetune.estimators import backprop, skip_slopes

    modules: tuple[Any, ...] = (backprop, skip_slopes)
    before = [one.differentiated for one in modules]
    try:
        for one in modules:
            one.differentiated = lambda objective: objective
        yield
    finally:
        for one, was in zip(modules, before, strict=True):
            one.differentiated = was


def with_whole(sides: dict[str, Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """Return the sides, and behind each that takes gradients the same with all logits at once."""

    def whole(side: Callable[[], object]) -> Callable[[], object]:
        def take() -> object:
            with logits_at_once():
                return side()

        return take

    found = dict[str, Callable[[], object]]()
    for name, side in sides.items():
        found[name] = side
        if name not in ("forward pass", "fedkseed"):
            found[name + WHOLE] = whole(side)
    return found


def main(
    hidden: Annotated[int, typer.Option(help="Width.")] = 768,
    layers: Annotated[int, typer.Option(help="Decoder blocks.")] = 12,
    vocabulary: Annotated[int, typer.Option(help="Tokens.")] = 16000,
    tokens: Annotated[int, typer.Option(help="Tokens a record.")] = 128,
    size: Annotated[int, typer.Option(help="Records a batch.")] = 8,
    turns: Annotated[int, typer.Option(help="Turns.")] = 5,
    responses: Annotated[int, typer.Option(help="Tokens at a record's end that are its response.")] = 32,
    only: Annotated[str, typer.Option(help="Rows, with commas between them; all if empty.")] = "",
    whole: Annotated[
        bool, typer.Option("--whole", help="Also with the logits of all positions at once.")
    ] = False,
) -> None:
    """Print a Markdown table."""
    from transformers import LlamaConfig

    from edgetune.core.batch import IGNORED, Batch
    from edgetune.measure.allocator import allocator_peak

    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
    )  # fmt: skip
    ids = torch.randint(vocabulary, (size, tokens), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, : tokens - responses] = IGNORED
    rows = [row for row in only.split(",") if row] or list(METHODS)
    sides = sides_of(config, Batch(ids, torch.ones_like(ids), labels), rows)
    sides = with_whole(sides) if whole else sides
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):  # the first one warms up
        for name, side in sides.items():
            begun = time.process_time()
            side()
            if turn:
                seconds[name].append(time.process_time() - begun)
    base = statistics.median(seconds["forward pass"])
    print(f"{size} x {tokens} tokens: a forward pass takes {base:.2f} CPU s\n")
    print("| step | forward passes in CPU time | torch allocates, MB |\n|---|---|---|")
    for name, side in sides.items():
        ratios = sorted(one / base for one in seconds[name])
        peak = allocator_peak(side) / 1e6
        print(
            f"| {name} | {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}] | {peak:.0f} |"
        )


if __name__ == "__main__":
    typer.run(main)
