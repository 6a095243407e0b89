"""Where a direction's bits come from: the key streams under one pool key."""

from __future__ import annotations

import struct

import torch

from edgetune.core.keys import tensor_id
from edgetune.directions.chacha import WORDS, chacha20

BITS = 32 * WORDS
"""Bits of one key stream block: 512."""


class Source:
    """The key streams of one key.

        stream(name, seed) = ChaCha20(key, nonce = tensor id (4 bytes) || seed (8 bytes), counter = 0, 1, ...)

    Args:
        key: 32 bytes; secret, or derived from a public seed by `core.keys.pool_key`.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key

    def words(self, name: str, seed: int, first: int, count: int, device: torch.device) -> torch.Tensor:
        """Return int32 [count, 16]: blocks `first ... first + count - 1` of a stream.

        Args:
            name: the parameter's name.
            seed: in [0, 2^64).
            first: index of the first block.
            count: number of blocks.
            device: where to compute.
        """
        nonce = struct.pack("<IQ", tensor_id(name), seed)
        return chacha20(self.key, nonce, torch.arange(first, first + count, device=device))

    def signs(self, name: str, seed: int, start: int, count: int, device: torch.device) -> torch.Tensor:
        """Return [count] of +1 and -1, int8 here.

        element j = 1 - 2 * bit j of the stream, least significant bit of word 0 first
        """
        first = start // BITS
        words = self.words(name, seed, first, -(-(start + count) // BITS) - first, device)
        bits = (words.reshape(-1, 1) >> torch.arange(32, dtype=torch.int32, device=device)) & 1
        offset = start - first * BITS
        return (1 - 2 * bits.to(torch.int8)).reshape(-1)[offset : offset + count]


class CachedSource(Source):
    """A source that remembers the sign streams it was asked for from element 0.

    A Hadamard pool reads the same two streams for all of its directions; in plain torch drawing them anew costs more
    than the forward pass of a small model.

    Args:
        key: 32 bytes.
        drawn: what draws them; this class itself if not given.
    Cost: what `drawn` gives of each stream: in plain torch a byte a sign, two bytes a weight for a Hadamard pool.
    """

    def __init__(self, key: bytes, drawn: Source | None = None) -> None:
        super().__init__(key)
        self._drawn = drawn or Source(key)
        self._streams: dict[tuple[str, int, int, torch.device], torch.Tensor] = {}

    def signs(self, name: str, seed: int, start: int, count: int, device: torch.device) -> torch.Tensor:
        """Return [count] of +1 and -1, from memory if the same stream prefix was drawn before."""
        if start:
            return self._drawn.signs(name, seed, start, count, device)
        where = (name, seed, count, device)
        if where not in self._streams:
            self._streams[where] = self._drawn.signs(name, seed, 0, count, device)
        return self._streams[where]
