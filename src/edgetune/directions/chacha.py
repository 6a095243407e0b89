"""The ChaCha20 block function in plain torch: the reference every faster kernel must equal bit for bit."""

from __future__ import annotations

import struct

import torch

WORDS = 16
"""32-bit words of one block."""
CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")


def _signed(word: int) -> int:
    """Return the int32 with the bits of an unsigned word, because torch computes on signed ones."""
    return word - (1 << 32) if word >= 1 << 31 else word


def _rotate(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Rotate int32 lanes left; the mask undoes the sign extension of the right shift."""
    return (x << bits) | ((x >> (32 - bits)) & ((1 << bits) - 1))


def _quarter_rounds(rows: list[torch.Tensor]) -> None:
    """Apply the quarter round to the four columns at once; `rows` are int32 [4, blocks]."""
    a, b, c, d = rows
    a = a + b
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a = a + b
    d = _rotate(d ^ a, 8)
    c = c + d
    b = _rotate(b ^ c, 7)
    rows[:] = [a, b, c, d]


def chacha20(key: bytes, nonce: bytes, counters: torch.Tensor) -> torch.Tensor:
    """Return the key stream blocks at the given counters.

    Args:
        key: 32 bytes.
        nonce: 12 bytes.
        counters: int64 [blocks], each in [0, 2^32).

    Returns:
        int32 [blocks, 16], the words of each block; read as unsigned.
    Cost: about 600 elementwise operations on int32 [4, blocks].
    Source: RFC 8439, section 2.3.
    """
    words = [*CONSTANTS, *struct.unpack("<8I", key), 0, *struct.unpack("<3I", nonce)]
    blocks = len(counters)
    start = torch.tensor([_signed(word) for word in words], dtype=torch.int32, device=counters.device)
    state = start.reshape(4, 4, 1).repeat(1, 1, blocks)
    state[3, 0] = counters.to(torch.int32)  # keeps the low 32 bits, as RFC 8439 wants
    rows = [state[0], state[1], state[2], state[3]]
    for _ in range(10):
        _quarter_rounds(rows)
        rows = [row.roll(-shift, 0) for shift, row in enumerate(rows)]
        _quarter_rounds(rows)
        rows = [row.roll(shift, 0) for shift, row in enumerate(rows)]
    return (torch.stack(rows) + state).reshape(WORDS, blocks).T
