"""FedKSeed's catch-up: rebuilding a model from its ledger, beside the local steps of the same round."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from edgetune.bench.models import random_batch, random_llama
from edgetune.bench.timing import Ratio, compare, take_turns
from edgetune.core.batch import response_loss
from edgetune.core.keys import pool_key
from edgetune.core.update import Projected
from edgetune.directions import Hadamard
from edgetune.directions.space import BoundSpace
from edgetune.estimators import TwoPoint
from edgetune.tune import ProjectedTuned

LOCAL_STEPS = 200


def bench_catchup(
    hidden: int = 2048, layers: int = 16, vocabulary: int = 32000, pool: int = 4096, tokens: int = 128
) -> Iterator[Ratio]:
    """Yield the catch-up of a bfloat16 Llama (0.9 G weights with the defaults) relative to 200 estimates of batch 1.

    Args:
        hidden: width.
        layers: decoder blocks.
        vocabulary: tokens.
        pool: K.
        tokens: tokens of the record of a local step.
    """
    model = random_llama(hidden, 4 * hidden, layers, hidden // 64, vocabulary, torch.bfloat16)
    tuned = ProjectedTuned(model, BoundSpace(Hadamard(pool), pool_key(0)))
    coefficients = np.random.default_rng(0).normal(size=pool).astype(np.float32) * np.float32(1e-6)
    state = Projected(np.arange(pool, dtype=np.int64), coefficients)
    batch, estimate = random_batch(1, tokens, vocabulary), TwoPoint(1e-3)
    weights = sum(weight.numel() for weight in model.parameters())
    catch_up = f"catch-up of {weights / 1e9:.2f} G weights, K={pool}"
    step = "one estimate"
    seconds = take_turns(
        {catch_up: lambda: tuned.reset(state), step: lambda: estimate(tuned, response_loss, batch, 5)}, 3
    )
    yield compare(
        seconds, catch_up, step, scale=1 / LOCAL_STEPS,
        note=f"divided by {LOCAL_STEPS}: relative to {LOCAL_STEPS} local steps, of which 3 were run",
    )  # fmt: skip
