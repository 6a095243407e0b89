"""A whole MeZO step beside two plain forward passes on the same data, and beside the published in-place loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from edgetune.bench.models import random_batch, random_llama
from edgetune.bench.reference import step_in_place
from edgetune.bench.timing import Ratio, compare, take_turns
from edgetune.core.batch import Batch, response_loss
from edgetune.core.keys import pool_key
from edgetune.directions import Rademacher
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.tune import ProjectedTuned
from edgetune.updates import Sgd

SHAPES = ((8, 128), (1, 128), (1, 16))
"""Records and tokens a record of the measured batches."""


def bench_step(
    hidden: int = 768, layers: int = 12, vocabulary: int = 16000, rounds: int = 5
) -> Iterator[Ratio]:
    """Yield the ratios for a random Llama (about 90 M weights with the defaults), one batch shape after another.

    Args:
        hidden: width.
        layers: decoder blocks.
        vocabulary: tokens.
        rounds: turns of every side.
    """
    model = random_llama(hidden, 3 * hidden, layers, hidden // 64, vocabulary)
    tuned = ProjectedTuned(model, BoundSpace(Rademacher(), pool_key(0)))
    estimate, local = TwoPoint(1e-3), Sgd(1e-6)
    for size, tokens in SHAPES:
        batch = random_batch(size, tokens, vocabulary)
        ours, plain, published = f"step {size}x{tokens}", f"two forwards {size}x{tokens}", "in-place loop"
        seconds = take_turns(
            {
                ours: _step(tuned, estimate, local, batch),
                plain: _two_forwards(model, batch),
                published: _in_place(model, batch),
            },
            rounds,
        )
        yield compare(seconds, ours, plain)
        yield compare(seconds, published, plain)


def _step(tuned: ProjectedTuned, estimate: TwoPoint, local: Sgd, batch: Batch) -> Callable[[], object]:
    return lambda: local.step(tuned, estimate(tuned, response_loss, batch, 7).update, {})


def _two_forwards(model: torch.nn.Module, batch: Batch) -> Callable[[], object]:
    @torch.no_grad()
    def work() -> None:
        for _ in range(2):
            float(response_loss(model, batch))

    return work


def _in_place(model: torch.nn.Module, batch: Batch) -> Callable[[], object]:
    return lambda: step_in_place(model, batch, seed=7, eps=1e-3, lr=1e-6)
