"""A step along directions of rank one beside two plain forward passes of the same base, in floats and in 4 bits."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
from transformers import PreTrainedModel

from edgetune.bench.models import random_batch
from edgetune.bench.step import SHAPES, mezo_step, two_forwards
from edgetune.bench.timing import Ratio, compare, take_turns
from edgetune.core.keys import pool_key
from edgetune.core.quantised import Q4_0, StoredTensor, whole_blocks
from edgetune.core.update import Projected
from edgetune.directions import RankOne, RankOnePool
from edgetune.directions.space import BoundSpace
from edgetune.federation.residency import pack_tensor
from edgetune.tune import projected, streamed

POOL = 4096
STATE = Projected(np.arange(POOL), np.linspace(-1e-6, 1e-6, POOL, dtype=np.float32))


def bench_moved(model: PreTrainedModel, rounds: int = 5) -> Iterator[Ratio]:
    """Yield the ratios for a model on the CPU, one batch shape after another.

    Args:
        model: in evaluation mode, float32; three copies of it are made, one of them packed.
        rounds: turns of every side.
    """
    base: dict[str, StoredTensor] = {
        name: pack_tensor(one.detach(), Q4_0, name) if whole_blocks(one.shape) else one.detach()
        for name, one in model.named_parameters()
    }
    pool, fresh = (BoundSpace(kind, pool_key(0)) for kind in (RankOnePool(POOL), RankOne()))
    handles = {
        "rank_one": projected(copy.deepcopy(model), fresh),
        "rank_one_pool": projected(copy.deepcopy(model), pool),
        "rank_one_pool on Q4_0": streamed(copy.deepcopy(model), pool, base),
    }
    for name in ("rank_one_pool", "rank_one_pool on Q4_0"):
        handles[name].reset(STATE)
    plain_packed = streamed(copy.deepcopy(model), pool, base)
    for size, tokens in SHAPES:
        batch = random_batch(size, tokens, model.config.vocab_size)
        floats, packed = f"two forwards {size}x{tokens}", f"two forwards on Q4_0 {size}x{tokens}"
        sides = {f"{name} step": mezo_step(handle, batch) for name, handle in handles.items()}
        plain = {floats: two_forwards(model, batch), packed: two_forwards(plain_packed.model, batch)}
        seconds = take_turns({**sides, **plain}, rounds)
        for side in sides:
            yield compare(seconds, side, packed if "Q4_0" in side else floats)
