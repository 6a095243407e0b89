"""The Triton kernel of narrow weights that keep the remainder of their rounding (`core.remainder`)."""

import triton
import triton.language as tl

from edgetune.directions.gpu.kernels import SCALARS, WORDS, places, read, stream_blocks, term, write


@triton.jit
def rounded(x, BFLOAT: tl.constexpr):
    """Round float32 to bfloat16 or float16, to nearest even, and return it as float32."""
    if BFLOAT:
        bits = x.to(tl.uint32, bitcast=True)
        near = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
        near = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, bits | 0x400000, near)
        return near.to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float16).to(tl.float32)


@triton.jit
def unit_exponents(weight, BFLOAT: tl.constexpr):
    """Return the exponent field of 2^-15 of a narrow weight's last place: uint32, see `core.remainder`."""
    exponent = (weight.to(tl.uint32, bitcast=True) >> 23) & 0xFF
    if BFLOAT:
        return tl.maximum(exponent, 127 - 100) - (7 + 15)
    else:
        return tl.maximum(exponent, 127 - 14) - (10 + 15)


@triton.jit
def remainders(x, weight, BFLOAT: tl.constexpr):
    """Return `(x - weight) / unit` as a whole float32 number; the unit is a power of two, its inverse exact."""
    inverse = ((254 - unit_exponents(weight, BFLOAT)) << 23).to(tl.float32, bitcast=True)
    y = (x - weight) * inverse
    signs = y.to(tl.uint32, bitcast=True) & 0x80000000
    whole = (y + 12582912.0) - 12582912.0  # 1.5 * 2^23: beyond it float32 has no fractions
    return (whole.to(tl.uint32, bitcast=True) | signs).to(tl.float32, bitcast=True)


@triton.jit
def joined(weight, remainder, BFLOAT: tl.constexpr):
    """Return `weight + remainder * unit`, exact."""
    unit = (unit_exponents(weight, BFLOAT) << 23).to(tl.float32, bitcast=True)
    return weight + remainder * unit


@triton.jit(do_not_specialize=SCALARS)
def follow(
    weight, remainder, base, count, key, tensor, seeds, coefficients, terms, table,
    KIND: tl.constexpr, PER_WORD: tl.constexpr, LANES: tl.constexpr, FROM_BASE: tl.constexpr,
    OUT_BFLOAT: tl.constexpr, BASE_BFLOAT: tl.constexpr,
):  # fmt: skip
    """Add directions one after the other to a 16-bit tensor and the remainders of its rounding, each sum held.

    `base` is where they start from if FROM_BASE, else weight and remainder are; `seeds` and `coefficients` as in
    `accumulate`; `remainder` is int16.
    """
    first = tl.program_id(0).to(tl.int64) * (LANES * WORDS * PER_WORD)
    blocks = stream_blocks(first, PER_WORD, LANES)
    at = places(tl.arange(0, LANES), LANES, PER_WORD)
    inside = at < count - first
    if FROM_BASE:
        x = read(base + first, at, inside, BASE_BFLOAT)
        near = rounded(x, OUT_BFLOAT)
        left = remainders(x, near, OUT_BFLOAT)
    else:
        near = read(weight + first, at, inside, OUT_BFLOAT)
        left = tl.load(remainder + first + at, mask=inside, other=0).to(tl.float32)
    for k in range(terms):
        low, high = tl.load(seeds + 2 * k), tl.load(seeds + 2 * k + 1)
        x = joined(near, left, OUT_BFLOAT)
        x += term(key, tensor, low, high, tl.load(coefficients + k), table, blocks, KIND, 1, LANES)
        near = rounded(x, OUT_BFLOAT)
        left = remainders(x, near, OUT_BFLOAT)
    # What is held may round to another weight than what it was held of: both halves follow from it anew.
    x = joined(near, left, OUT_BFLOAT)
    near = rounded(x, OUT_BFLOAT)
    write(weight + first, at, inside, near, OUT_BFLOAT)
    tl.store(remainder + first + at, remainders(x, near, OUT_BFLOAT).to(tl.int16), mask=inside)
