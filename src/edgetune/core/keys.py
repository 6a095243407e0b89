"""Every random choice is a pure function of a seed and a name: keys, tensor ids and named streams."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2s

import numpy as np

from edgetune.core.errors import ModelError

KEY_BYTES = 32


def pool_key(seed: int) -> bytes:
    """Return the public 256-bit direction key of a master seed (an unsigned 32-bit number, 4 bytes on the wire).

    key = BLAKE2s("edgetune directions" || seed as 4 little-endian bytes)
    """
    return blake2s(b"edgetune directions" + seed.to_bytes(4, "little")).digest()


def key_id(key: bytes) -> str:
    """Name a key without revealing it: 16 hexadecimal digits of BLAKE2s(key) under its own label."""
    return blake2s(key, person=b"keyid").hexdigest()[:16]


def tensor_id(name: str) -> int:
    """Return the 32-bit id of a parameter: the first 4 bytes, little-endian, of BLAKE2s over its UTF-8 name."""
    return int.from_bytes(blake2s(name.encode()).digest()[:4], "little")


def refuse_colliding_ids(names: Iterable[str]) -> None:
    """Refuse a model in which two parameter names share a tensor id.

    Raises:
        ModelError: naming both parameters; their directions would be equal, not independent.
    """
    seen: dict[int, str] = {}
    for name in names:
        other = seen.setdefault(tensor_id(name), name)
        if other != name:
            raise ModelError(f"the parameters {other!r} and {name!r} share a direction id", hint="rename one")


def digest64(*parts: object) -> int:
    """Return a 64-bit number that depends on every part, in order."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake2s(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, *name: object) -> np.random.Generator:
    """Return the generator of one named purpose, independent of every other purpose.

    Args:
        seed: the run's seed.
        name: the purpose and its indices, for example `("batches", round, device)`.

    Returns:
        A fresh generator; equal arguments give equal numbers on every machine.
    """
    return np.random.Generator(np.random.Philox(key=digest64(seed, *name)))


def fresh_seed(seed: int, *name: object) -> int:
    """Return a 63-bit direction seed for one step, never drawn twice except by chance (2^-63 a pair)."""
    return digest64(seed, "direction", *name) >> 1
