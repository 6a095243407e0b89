"""The Triton kernels of directions of rank one: a program forms a block of a matrix from signs drawn before."""

import triton
import triton.language as tl

from edgetune.directions.gpu.kernels import WORDS, flipped, key_stream, read, write

SCALARS = ("rows", "columns", "pitch", "tensor", "terms", "column_block")


@triton.jit(do_not_specialize=SCALARS)
def draw(to, pitch, key, tensor, seeds, LANES: tl.constexpr):
    """Write LANES key stream blocks a program: int32 [terms, pitch], a term's words in element order from block 0 on.

    `seeds` are int32 [terms, 2], the low halves first; `pitch` is a multiple of 16 LANES.
    """
    k, first = tl.program_id(0), tl.program_id(1) * LANES
    blocks = (first + tl.arange(0, LANES)).to(tl.uint32)
    words = key_stream(key, tensor, tl.load(seeds + 2 * k), tl.load(seeds + 2 * k + 1), blocks, LANES)
    at = k.to(tl.int64) * pitch + first * WORDS
    tl.store(to + at + tl.arange(0, LANES * WORDS), words.to(tl.int32, bitcast=True))


@triton.jit
def sign_at(words, element, inside):
    """Return bit `element` of a stream as a float's sign bit: uint32."""
    word = tl.load(words + element // 32, mask=inside, other=0).to(tl.uint32, bitcast=True)
    return (word >> (element % 32).to(tl.uint32)) << 31


@triton.jit(do_not_specialize=SCALARS)
def add_core(
    out, base, rows, columns, words, pitch, core,
    TALL: tl.constexpr, ACROSS: tl.constexpr, MATRIX: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, OUT_BFLOAT: tl.constexpr, BASE_BFLOAT: tl.constexpr,
):  # fmt: skip
    """Form `out = base + D tile(core) E`, core float32 [TALL, ACROSS]; `words` hold D's stream, then E's.

    A vector is one row without D, whose E is the first stream.
    """
    i, j = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    x = tl.load(core + (i % TALL)[:, None] * ACROSS + (j % ACROSS)[None, :])
    if MATRIX:
        signs = sign_at(words, i, i < rows)[:, None] ^ sign_at(words + pitch, j, j < columns)[None, :]
    else:
        signs = tl.broadcast_to(sign_at(words, j, j < columns)[None, :], (ROWS, COLUMNS))
    at = i.to(tl.int64)[:, None] * columns + j[None, :]
    write(out, at, inside, read(base, at, inside, BASE_BFLOAT) + flipped(x, signs), OUT_BFLOAT)


@triton.jit(do_not_specialize=SCALARS)
def add_terms(
    out, base, rows, columns, words, pitch, column_block, coefficients, terms,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, OUT_BFLOAT: tl.constexpr, BASE_BFLOAT: tl.constexpr,
):  # fmt: skip
    """Form `out = (base + a_1 u_1 v_1^T) + a_2 u_2 v_2^T ...` in the order given.

    u_k begins with the stream of term k, v_k at its block `column_block`; `coefficients` are the bits of a_k.
    """
    i, j = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    at = i.to(tl.int64)[:, None] * columns + j[None, :]
    total = read(base, at, inside, BASE_BFLOAT)
    for k in range(terms):
        signs = sign_at(words, i, i < rows)[:, None]
        signs = signs ^ sign_at(words + column_block * WORDS, j, j < columns)[None, :]
        total += (tl.load(coefficients + k).to(tl.uint32) ^ signs).to(tl.float32, bitcast=True)
        words += pitch
    write(out, at, inside, total, OUT_BFLOAT)
