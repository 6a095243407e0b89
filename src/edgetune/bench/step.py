"""A whole MeZO step beside two plain forward passes on the same data, and beside the published in-place loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedModel

from edgetune.bench.models import random_batch, random_llama
from edgetune.bench.reference import step_in_place
from edgetune.bench.timing import Ratio, compare, take_turns, waiting
from edgetune.core.batch import Batch, response_loss
from edgetune.core.keys import pool_key
from edgetune.core.quantised import Q4_0, Q8_0, StoredTensor, whole_blocks
from edgetune.core.update import Projected
from edgetune.directions import Hadamard, Rademacher
from edgetune.directions.kernel import compiled_level
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.federation.residency import pack_tensor
from edgetune.tune import ProjectedTuned, StreamedTuned
from edgetune.updates import Sgd

SHAPES = ((8, 128), (1, 128), (1, 16))
"""Records and tokens a record of the measured batches."""
RESIDENT = {"fused": None, "streamed": None, "streamed-q8_0": Q8_0, "streamed-q4_0": Q4_0}
"""Where weights live, and what the base is rounded to."""
POOL = 4096


def usual_llama() -> PreTrainedModel:
    """Return the random Llama of about 90 M weights that steps are measured on."""
    return random_llama(768, 3 * 768, 12, 12, 16000)


def bench_step(model: PreTrainedModel, rounds: int = 5, device: str = "cpu") -> Iterator[Ratio]:
    """Yield the ratios for a model, one batch shape after another.

    Weights are streamed with the compiled kernel only, on the CPU.

    Args:
        model: in evaluation mode, float32; two copies of it are made.
        rounds: turns of every side.
        device: where all sides compute; a GPU's work is waited for before the clock is read.
    """
    place = torch.device(device)
    model.to(place)  # type: ignore[arg-type]
    # Each side has its own model: a step that is folded into the next step's reads must not be paid by another side.
    vocabulary = model.config.vocab_size
    tuned = ProjectedTuned(copy.deepcopy(model), BoundSpace(Rademacher(), pool_key(0)))
    for size, tokens in SHAPES:
        batch = random_batch(size, tokens, vocabulary).to(place)
        ours, plain, published = f"step {size}x{tokens}", f"two forwards {size}x{tokens}", "in-place loop"
        seconds = take_turns(
            {
                ours: mezo_step(tuned, batch),
                plain: two_forwards(model, batch),
                published: _in_place(model, batch),
            },
            rounds,
            waiting(place),
        )
        yield compare(seconds, ours, plain)
        yield compare(seconds, published, plain)
    del tuned
    # In plain torch a streamed step takes a hundred times two forwards.
    streams = compiled_level() is not None and place.type == "cpu"
    handles = {name: _handle(copy.deepcopy(model), name) for name in RESIDENT if streams or name == "fused"}
    for size, tokens in SHAPES[1:]:
        batch, plain = random_batch(size, tokens, vocabulary).to(place), f"two forwards {size}x{tokens}"
        sides = {f"FedKSeed step, {name}": mezo_step(handle, batch) for name, handle in handles.items()}
        seconds = take_turns({**sides, plain: two_forwards(model, batch)}, rounds, waiting(place))
        for side in sides:
            yield compare(seconds, side, plain)


def _handle(model: PreTrainedModel, residency: str) -> ProjectedTuned:
    """Return a handle of a pool of Hadamard directions that stands at a random state."""
    space, grid = BoundSpace(Hadamard(POOL), pool_key(0)), RESIDENT[residency]
    if residency == "fused":
        return ProjectedTuned(model, space)
    base: dict[str, StoredTensor] = {name: one.detach() for name, one in model.named_parameters()}
    if grid is not None:
        base = {
            name: pack_tensor(cast(torch.Tensor, one), grid, name) if whole_blocks(one.shape) else one
            for name, one in base.items()
        }
    tuned = StreamedTuned(model, space, base)
    tuned.reset(Projected(np.arange(POOL), np.linspace(-1e-6, 1e-6, POOL, dtype=np.float32)))
    return tuned


def mezo_step(tuned: ProjectedTuned, batch: Batch) -> Callable[[], object]:
    """Return one whole step: two points, and the update."""
    estimate, local = TwoPoint(1e-3), Sgd(1e-6)
    return lambda: local.step(tuned, estimate(tuned, response_loss, batch, 7).update, {})


def two_forwards(model: torch.nn.Module, batch: Batch) -> Callable[[], object]:
    """Return what a two-point step is measured by: the loss of a batch, twice."""

    @torch.no_grad()
    def work() -> None:
        for _ in range(2):
            float(response_loss(model, batch))

    return work


def _in_place(model: torch.nn.Module, batch: Batch) -> Callable[[], object]:
    return lambda: step_in_place(model, batch, seed=7, eps=1e-3, lr=1e-6)
