"""Up to how many rows a product perturbs its matrix in the cache; beyond, the matrix is formed in memory.

The two ways round differently, so the choice is part of a run's arithmetic: it depends on the instruction set and
the environment, never on how fast this machine happens to be at the moment.
"""

from __future__ import annotations

import os

from edgetune.core.errors import ConfigError
from edgetune.directions.native import LEVELS

VARIABLE = "EDGETUNE_PRODUCT_ROWS"
MEASURED = {"baseline": 16, "avx2": 192, "avx512": 192}
"""Rows of one point by instruction set, not more than `edgetune bench rows` found (docs/results/bench.md): with more,
the matrix library's larger tiles win more than a pass over memory costs, and activations of both points take room."""
UNCOMPILED = 192
"""Without the compiled kernel it only decides whether both points of a step share one walk of the model."""
LARGEST = 1 << 20


def few_rows(level: int | None) -> int:
    """Return the greatest number of rows of one point that is few, from the environment or the table.

    Args:
        level: instruction set of the compiled kernel, an index of LEVELS; None without it.

    Raises:
        ConfigError: if EDGETUNE_PRODUCT_ROWS is no number from 0 to 2^20.
    """
    pinned = os.environ.get(VARIABLE)
    if pinned is None:
        return UNCOMPILED if level is None else MEASURED[LEVELS[level]]
    number = int(pinned) if pinned.isascii() and pinned.isdigit() and len(pinned) < 8 else -1
    if not 0 <= number <= LARGEST:
        hint = f"a number from 0 (every matrix is formed in memory) to {LARGEST}"
        raise ConfigError(f"{pinned!r} is no number of rows", where=VARIABLE, hint=hint)
    return number
