"""Initial values of adapters: functions of a seed and a name, on every machine, from no generator that others share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import torch


def uniform(seed: int, name: str, shape: Sequence[int], bound: float) -> torch.Tensor:
    """Draw evenly from (-bound, bound).

        x_i = bound (2 u_i - 1)

    Args:
        seed: master seed, unsigned 32 bits.
        name: the parameter's name.
        shape: of the tensor.
        bound: > 0.

    Returns:
        Float32 [shape].
    Cost: 4 bytes of SHAKE-128 an element.
    """
    return _tensor(bound * (2 * _fractions(seed, name, math.prod(shape)) - 1), shape)


def normal(seed: int, name: str, shape: Sequence[int], deviation: float) -> torch.Tensor:
    """Draw from a normal distribution around 0.

        x_i = deviation Phi^-1(u_i)

    Args:
        seed: master seed, unsigned 32 bits.
        name: the parameter's name.
        shape: of the tensor.
        deviation: standard deviation, at least 0.

    Returns:
        Float32 [shape].
    Cost: about a microsecond an element.
    """
    inverse = NormalDist().inv_cdf
    return _tensor(
        np.array([deviation * inverse(u) for u in _fractions(seed, name, math.prod(shape)).tolist()]), shape
    )


def _fractions(seed: int, name: str, count: int) -> npt.NDArray[np.float64]:
    """Return u_i = (k_i + 1/2) / 2^32, k_i the little-endian words of SHAKE-128("edgetune adapter" || seed || name)."""
    text = b"edgetune adapter" + seed.to_bytes(4, "little") + name.encode()
    words = np.frombuffer(hashlib.shake_128(text).digest(4 * count), "<u4")
    return (words.astype(np.float64) + 0.5) / 2.0**32


def _tensor(values: npt.NDArray[np.float64], shape: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32)).view(*shape)
