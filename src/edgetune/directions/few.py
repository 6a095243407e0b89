"""How many rows a product has whose matrix is perturbed in the cache; beyond, it is formed in memory.

The two ways round differently, so the choice is part of a run's arithmetic: it depends on the instruction set and on the
environment, never on how fast this machine happens to be at the moment.
"""

from __future__ import annotations

import os

from edgetune.core.errors import ConfigError
from edgetune.directions.native import LEVELS

VARIABLE = "EDGETUNE_PRODUCT_ROWS"
MEASURED = {"baseline": range(8, 33), "avx2": range(8, 257), "avx512": range(8, 257)}
"""By instruction set, from `edgetune bench rows` (docs/results/bench.md): below, lanes are empty; above, the matrix library's
larger tiles win more than a pass over memory costs."""
UNCOMPILED = range(1, 193)
"""Without the compiled kernel it only decides whether both points of a step share one walk of the model."""
LARGEST = 1 << 20


def few_rows(level: int | None) -> range:
    """Return the numbers of rows of one point that are few, from the environment or the table.

    Args:
        level: instruction set of the compiled kernel, an index of LEVELS; None without it.

    Raises:
        ConfigError: if EDGETUNE_PRODUCT_ROWS is not two numbers, the first at most the second, with a colon between.
    """
    pinned = os.environ.get(VARIABLE)
    if pinned is None:
        return UNCOMPILED if level is None else MEASURED[LEVELS[level]]
    low, colon, high = pinned.partition(":")
    numbers = [int(one) if one.isascii() and one.isdigit() and len(one) < 8 else 0 for one in (low, high)]
    if not colon or not 1 <= numbers[0] <= numbers[1] <= LARGEST:
        raise ConfigError(
            f"{pinned!r} are not numbers of rows",
            where=VARIABLE,
            hint=f"for example 8:256, at most {LARGEST}; {LARGEST}:{LARGEST} forms every matrix in memory",
        )
    return range(numbers[0], numbers[1] + 1)
