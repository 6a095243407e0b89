"""Named streams of random numbers: each purpose draws from its own, so that none disturbs another."""

from __future__ import annotations

import hashlib

import numpy as np

from edgetune.core.errors import ConfigError


def stream(seed: int, name: str) -> np.random.Generator:
    """Return the random numbers of one named purpose: PCG64 seeded by (seed, SHA-256 of the name).

    Raises:
        ConfigError: a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"the seed {seed} is negative", hint="use 0 or more")
    tag = int.from_bytes(hashlib.sha256(name.encode("utf-8")).digest()[:8], "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, tag])))
