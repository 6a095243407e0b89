"""Small integers in 32-bit words: one stream of bits a row, the lowest first, as GPTQ and compressed-tensors write."""

from __future__ import annotations

import numpy as np
import torch

WORD = 32
AT_ONCE = 1 << 22
"""Integers packed at a time; bounds the scratch memory, a byte a bit."""


def to_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Return rows of integers as rows of words.

        bit (bits j + k) of a row = bit k of value j,   bit i of a row = bit (i mod 32) of word i // 32

    Args:
        values: integers [rows, n], each in [0, 2^bits - 1].
        bits: of a value, 1 to 8.

    Returns:
        int32 [rows, ceil(n bits / 32)].
    """
    raw = values.cpu().numpy().astype(np.uint8)
    rows, count = raw.shape
    width = -(-count * bits // WORD)
    found = np.zeros((rows, width * 4), np.uint8)
    step = max(1, AT_ONCE // max(1, count))
    for first in range(0, rows, step):
        some = raw[first : first + step]
        stream = np.unpackbits(some[..., None], axis=-1, count=bits, bitorder="little")
        packed = np.packbits(stream.reshape(len(some), -1), axis=1, bitorder="little")
        found[first : first + step, : packed.shape[1]] = packed
    return torch.from_numpy(found.view("<i4").astype(np.int32))


def from_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the integers of rows of words, the inverse of `to_words`.

    Args:
        words: int32 [rows, at least ceil(count bits / 32)].
        bits: of a value, 1 to 8.
        count: values of a row.

    Returns:
        uint8 [rows, count].
    """
    raw = words.cpu().numpy().astype("<i4")
    raw = np.ascontiguousarray(raw).view(np.uint8)
    found = np.empty((len(raw), count), np.uint8)
    step = max(1, AT_ONCE // max(1, count))
    for first in range(0, len(raw), step):
        some = raw[first : first + step]
        stream = np.unpackbits(some, axis=1, count=count * bits, bitorder="little")
        values = np.packbits(stream.reshape(-1, bits), axis=1, bitorder="little")
        found[first : first + step] = values.reshape(len(some), count)
    return torch.from_numpy(found)
