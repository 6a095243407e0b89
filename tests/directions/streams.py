"""An independent ChaCha20 in plain Python integers, and the directions built on it element by element."""

from __future__ import annotations

import struct
from functools import cache
from hashlib import blake2s
from statistics import NormalDist


def _rotate(x: int, bits: int) -> int:
    return ((x << bits) | (x >> (32 - bits))) & 0xFFFFFFFF


def _quarter(s: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) & 0xFFFFFFFF
        s[z] = _rotate(s[z] ^ s[x], bits)


@cache
def block(key: bytes, nonce: bytes, counter: int) -> tuple[int, ...]:
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), counter]
    start += struct.unpack("<3I", nonce)
    state = list(start)
    for _ in range(10):
        for column in range(4):
            _quarter(state, column, 4 + column, 8 + column, 12 + column)
        for diagonal in range(4):
            a, b, c, d = (4 * row + (diagonal + row) % 4 for row in range(4))
            _quarter(state, a, b, c, d)
    return tuple((x + y) & 0xFFFFFFFF for x, y in zip(state, start, strict=True))


def _stream(key: bytes, name: str, seed: int, at: int) -> tuple[int, ...]:
    return block(key, blake2s(name.encode()).digest()[:4] + struct.pack("<Q", seed), at)


def rademacher(key: bytes, name: str, seed: int, j: int) -> int:
    word = _stream(key, name, seed, j // 512)[j % 512 // 32]
    return 1 - 2 * (word >> (j % 32) & 1)


def gaussian(key: bytes, name: str, seed: int, j: int) -> float:
    word = _stream(key, name, seed, j // 32)[j % 32 // 2]
    return NormalDist().inv_cdf(((word >> 16 * (j % 2) & 0xFFFF) + 0.5) / 65536)


def hadamard(key: bytes, name: str, k: int, j: int, size: int) -> int:
    period = 1
    while period < size:
        period *= 2
    b, i = divmod(j, period)
    sign = (-1) ** bin(i & k).count("1")
    return rademacher(key, name, 0, j) * sign * rademacher(key, name, 1, b * period + k)


def rank_one(key: bytes, name: str, seed: int, i: int, j: int, rows: int) -> int:
    above = (rows + 511) // 512 * 512
    return rademacher(key, name, seed, i) * rademacher(key, name, seed, above + j)


def tile(size: int) -> tuple[int, int]:
    levels = 0
    while 1 << levels < size:
        levels += 1
    return 1 << (levels - levels // 2), 1 << levels // 2


def rank_one_pool(key: bytes, name: str, k: int, i: int, j: int, size: int) -> int:
    tall, wide = tile(size)
    a, b = k // wide, k % wide
    sign = (-1) ** (bin(i % tall & a).count("1") + bin(j % wide & b).count("1"))
    return rademacher(key, name, 0, i) * sign * rademacher(key, name, 1, j)


def rank_one_pool_vector(key: bytes, name: str, k: int, j: int, size: int) -> int:
    tall, wide = tile(size)
    a, b = k // wide, k % wide
    sign = (-1) ** (bin(j // wide % tall & a).count("1") + bin(j % wide & b).count("1"))
    return rademacher(key, name, 0, j) * sign


def _single(x: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def lozo(key: bytes, name: str, seed: int, i: int, j: int, rows: int) -> float:
    above, common = (rows * 2 + 31) // 32 * 32, seed - seed % 2**32
    half = _single(2**-0.5)
    total = 0.0
    for r in range(2):
        u = _single(_single(gaussian(key, name, seed, i * 2 + r)) * half)
        total = _single(total + _single(u * _single(gaussian(key, name, common, above + j * 2 + r))))
    return total


def _walsh(x: list[float]) -> list[float]:
    span = 1
    while span < len(x):
        x = [_single(x[i - span] - x[i]) if i & span else _single(x[i] + x[i + span]) for i in range(len(x))]
        span *= 2
    return x


@cache
def _core(key: bytes, name: str, seed: int) -> list[list[float]]:
    z = [[_single(gaussian(key, name, seed, 16 * a + b)) for b in range(16)] for a in range(16)]
    across = [_walsh(row) for row in z]
    down = [_walsh([row[b] for row in across]) for b in range(16)]
    return [[down[b][a] / 16 for b in range(16)] for a in range(16)]


def subzero(key: bytes, name: str, seed: int, i: int, j: int, rows: int) -> float:
    common, above = seed - seed % 2**32, 4096 + (rows + 511) // 512 * 512
    signs = rademacher(key, name, common, 4096 + i) * rademacher(key, name, common, above + j)
    return signs * _core(key, name, seed)[i % 16][j % 16]
