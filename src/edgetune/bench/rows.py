"""Up to how many rows a matrix is better perturbed in the cache: whole steps, one way and the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from edgetune.bench.models import random_batch, random_llama
from edgetune.bench.step import mezo_step
from edgetune.bench.timing import Ratio, compare, take_turns
from edgetune.core.errors import ConfigError
from edgetune.core.keys import pool_key
from edgetune.directions import Rademacher
from edgetune.directions.few import LARGEST
from edgetune.directions.kernel import VARIABLE, compiled_level
from edgetune.directions.space import BoundSpace
from edgetune.tune import ProjectedTuned

COUNTS = (2, 8, 16, 32, 64, 128, 192, 256, 384, 512)


def bench_rows(
    hidden: int = 768,
    layers: int = 4,
    vocabulary: int = 8000,
    rounds: int = 7,
    counts: Sequence[int] = COUNTS,
) -> Iterator[Ratio]:
    """Yield a step on one record of so many tokens, in the cache relative to in memory, one number after another.

    Args:
        hidden: width of a random Llama.
        layers: decoder blocks.
        vocabulary: tokens.
        rounds: turns of every side.
        counts: tokens of the record, at least 2.

    Raises:
        ConfigError: without the compiled kernel, which alone has two ways.
    """
    if compiled_level() is None:
        raise ConfigError("only the compiled kernel has two ways", where=VARIABLE, hint=f"{VARIABLE}=c")
    model = random_llama(hidden, 3 * hidden, layers, max(1, hidden // 64), vocabulary)
    ways = {name: _always(copy.deepcopy(model), most) for name, most in (("cache", LARGEST), ("memory", 0))}
    for count in counts:
        batch = random_batch(1, count, vocabulary)
        names = {way: f"{way}, {count} rows" for way in ways}
        seconds = take_turns({names[way]: mezo_step(tuned, batch) for way, tuned in ways.items()}, rounds)
        yield compare(seconds, names["cache"], names["memory"])


def break_even(counts: Sequence[int], rows: Sequence[Ratio]) -> int:
    """Return the greatest count up to which the cache is never slower; 0 if it is at the first."""
    found = 0
    for count, row in zip(counts, rows, strict=True):
        if row.ratio > 1:
            break
        found = count
    return found


def _always(model: PreTrainedModel, most: int) -> ProjectedTuned:
    space = BoundSpace(Rademacher(), pool_key(0))
    space.few = most
    return ProjectedTuned(model, space)
