"""The Triton kernels behind the directions; their launcher is `edgetune.directions.gpu.run`.

A tile is a vector of key stream blocks, one a lane. The 16 words of a lane lie in element order, so that a tile of
elements is a matrix [words, elements of one word] whose rows follow each other in memory.

Every sum is a single float32 addition in the reference's order. The launcher forbids fused multiply-adds: with them
`c * z + w` would be rounded once where the reference rounds twice. Signs are flipped by their bit, bfloat16 is
converted by integers, as in the C kernel: both then do not depend on the compiler or the interpreter.
"""

import triton
import triton.language as tl

WORDS = tl.constexpr(16)
GAUSSIAN = tl.constexpr(1)
HADAMARD = tl.constexpr(2)
SCALARS = ("start", "tensor", "low", "high", "coefficient", "terms")
"""Arguments that change from call to call; a kernel specialised to their values would be compiled again for each.
`count` is not among them: where it is a multiple of 16, memory is read and written by vectors."""


@triton.jit
def quarter_round(a, b, c, d):
    """Return the ChaCha quarter round of four uint32 vectors.

    The rotations are written out: a call costs the interpreter more than what it calls.
    """
    a += b
    d ^= a
    d = (d << 16) | (d >> 16)
    c += d
    b ^= c
    b = (b << 12) | (b >> 20)
    a += b
    d ^= a
    d = (d << 8) | (d >> 24)
    c += d
    b ^= c
    b = (b << 7) | (b >> 25)
    return a, b, c, d


INTERPRETED = not isinstance(quarter_round, triton.JITFunction)
"""Whether TRITON_INTERPRET=1 was set at import: the kernels then run in numpy, on CPU tensors too."""


@triton.jit
def key_stream(key, tensor, low, high, blocks, LANES: tl.constexpr):
    """Return the words of key stream blocks in element order: uint32 [LANES * 16] (RFC 8439, section 2.3).

    `key` points to int32 [8]; the nonce is (tensor, low, high); `blocks` are uint32 [LANES], the counters.
    """
    zero = tl.zeros([LANES], tl.uint32)
    k0, k1 = zero + tl.load(key).to(tl.uint32), zero + tl.load(key + 1).to(tl.uint32)
    k2, k3 = zero + tl.load(key + 2).to(tl.uint32), zero + tl.load(key + 3).to(tl.uint32)
    k4, k5 = zero + tl.load(key + 4).to(tl.uint32), zero + tl.load(key + 5).to(tl.uint32)
    k6, k7 = zero + tl.load(key + 6).to(tl.uint32), zero + tl.load(key + 7).to(tl.uint32)
    n1, n2, n3 = zero + tensor.to(tl.uint32), zero + low.to(tl.uint32), zero + high.to(tl.uint32)
    s0, s1, s2, s3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    s4, s5, s6, s7, s8, s9, s10, s11 = k0, k1, k2, k3, k4, k5, k6, k7
    s12, s13, s14, s15 = blocks, n1, n2, n3
    for _ in range(10):
        s0, s4, s8, s12 = quarter_round(s0, s4, s8, s12)
        s1, s5, s9, s13 = quarter_round(s1, s5, s9, s13)
        s2, s6, s10, s14 = quarter_round(s2, s6, s10, s14)
        s3, s7, s11, s15 = quarter_round(s3, s7, s11, s15)
        s0, s5, s10, s15 = quarter_round(s0, s5, s10, s15)
        s1, s6, s11, s12 = quarter_round(s1, s6, s11, s12)
        s2, s7, s8, s13 = quarter_round(s2, s7, s8, s13)
        s3, s4, s9, s14 = quarter_round(s3, s4, s9, s14)
    s0, s1, s2, s3 = s0 + 0x61707865, s1 + 0x3320646E, s2 + 0x79622D32, s3 + 0x6B206574
    s4, s5, s6, s7, s8, s9, s10, s11 = (
        s4 + k0,
        s5 + k1,
        s6 + k2,
        s7 + k3,
        s8 + k4,
        s9 + k5,
        s10 + k6,
        s11 + k7,
    )
    s12, s13, s14, s15 = s12 + blocks, s13 + n1, s14 + n2, s15 + n3
    # A join adds a fastest index; the last one must tell even words from odd ones.
    even = tl.join(tl.join(tl.join(s0, s8), tl.join(s4, s12)), tl.join(tl.join(s2, s10), tl.join(s6, s14)))
    odd = tl.join(tl.join(tl.join(s1, s9), tl.join(s5, s13)), tl.join(tl.join(s3, s11), tl.join(s7, s15)))
    return tl.reshape(tl.join(even, odd), (LANES * WORDS,))


@triton.jit
def places(blocks, LANES: tl.constexpr, PER_WORD: tl.constexpr):
    """Return the elements of key stream blocks: int32 [LANES * 16, PER_WORD], for `blocks` int32 [LANES]."""
    words = tl.reshape(blocks[:, None] * WORDS + tl.arange(0, WORDS)[None, :], (LANES * WORDS,))
    return words[:, None] * PER_WORD + tl.arange(0, PER_WORD)[None, :]


@triton.jit
def stream_blocks(element, PER_WORD: tl.constexpr, LANES: tl.constexpr):
    """Return the counters of the blocks from the one of an int64 element on: uint32 [LANES]."""
    return (element // (WORDS * PER_WORD)).to(tl.uint32) + tl.arange(0, LANES).to(tl.uint32)


@triton.jit
def sign_bits(words):
    """Return every bit of uint32 [n], least significant first, as a float's sign bit: uint32 [n, 32]."""
    return (words[:, None] >> tl.arange(0, 32).to(tl.uint32)[None, :]) << 31


@triton.jit
def flipped(x, signs):
    """Negate float32 `x` where the sign bit is set."""
    return (x.to(tl.uint32, bitcast=True) ^ signs).to(tl.float32, bitcast=True)


@triton.jit
def hadamard_signs(key, tensor, index, blocks, PADDED: tl.constexpr, LANES: tl.constexpr):
    """Return `D_b[i] (-1)^popcount(i & index) S_b[index]` as sign bits: uint32 [LANES * 16, 32].

    The column sign of element j = bP + i is element `bP + index` of stream 1. One key stream block a lane holds those
    of all its elements: if P >= 512 they are one bit, else they lie in the block with the elements' own counter.
    """
    nil = index * 0
    rows = key_stream(key, tensor, nil, nil, blocks, LANES)
    many: tl.constexpr = PADDED // 512 if PADDED > 512 else 1
    holders = blocks // many * many + (index // 512).to(tl.uint32)
    columns = key_stream(key, tensor, nil + 1, nil, holders, LANES)
    word = ((tl.arange(0, WORDS) * 32 & -PADDED) + index) // 32 % WORDS
    word = tl.broadcast_to(word[None, :], (LANES, WORDS)).to(tl.int32)
    columns = tl.reshape(tl.gather(tl.reshape(columns, (LANES, WORDS)), word, 1), (LANES * WORDS,))
    bit = ((tl.arange(0, 32) & -PADDED) + index) % 32
    inside = places((blocks & (many - 1)).to(tl.int32), LANES, 32) & (PADDED - 1)
    odd = (inside & index).to(tl.uint32)
    odd ^= odd >> 16
    odd ^= odd >> 8
    odd ^= odd >> 4
    odd ^= odd >> 2
    odd ^= odd >> 1
    odd ^= columns[:, None] >> bit.to(tl.uint32)[None, :]
    return sign_bits(rows) ^ (odd << 31)


@triton.jit
def term(
    key, tensor, low, high, coefficient, table, blocks,
    KIND: tl.constexpr, PADDED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Return `c z` of a tile: float32 [LANES * 16, elements of a word]; `coefficient` holds the bits of c."""
    if KIND == GAUSSIAN:
        words = key_stream(key, tensor, low, high, blocks, LANES)
        index = (words[:, None] >> (tl.arange(0, 2) * 16).to(tl.uint32)[None, :]) & 0xFFFF
        z = tl.load(table + index.to(tl.int32))
        return z * coefficient.to(tl.uint32).to(tl.float32, bitcast=True)
    else:
        if KIND == HADAMARD:
            signs = hadamard_signs(key, tensor, low, blocks, PADDED, LANES)
        else:
            signs = sign_bits(key_stream(key, tensor, low, high, blocks, LANES))
        return (coefficient.to(tl.uint32) ^ signs).to(tl.float32, bitcast=True)


@triton.jit
def read(base, at, inside, BFLOAT: tl.constexpr):
    """Load elements as float32; bfloat16 comes as int16."""
    x = tl.load(base + at, mask=inside, other=0)
    if BFLOAT:
        return (x.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def write(out, at, inside, x, BFLOAT: tl.constexpr):
    """Store float32 elements, rounded to nearest even; bfloat16 goes as int16."""
    if BFLOAT:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = (bits >> 16) | 0x40
        x = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded).to(tl.int16)
    tl.store(out + at, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add(out, base, count, at, x, OUT_BFLOAT: tl.constexpr, BASE_BFLOAT: tl.constexpr):
    """Form `out = base + x` at the elements `at` below `count`, rounded once."""
    write(out, at, at < count, x + read(base, at, at < count, BASE_BFLOAT), OUT_BFLOAT)


@triton.jit(do_not_specialize=SCALARS)
def perturb(
    out, base, count, start, key, tensor, low, high, coefficient, table,
    KIND: tl.constexpr, PADDED: tl.constexpr, PER_WORD: tl.constexpr, LANES: tl.constexpr,
    OUT_BFLOAT: tl.constexpr, BASE_BFLOAT: tl.constexpr,
):  # fmt: skip
    """Form `out = base + c z`, one program a tile; `out` and `base` begin with element `start` of the tensor."""
    first = tl.program_id(0).to(tl.int64) * (LANES * WORDS * PER_WORD)
    blocks = stream_blocks(first + start, PER_WORD, LANES)
    step = term(key, tensor, low, high, coefficient, table, blocks, KIND, PADDED, LANES)
    at = places(tl.arange(0, LANES), LANES, PER_WORD)
    add(out + first, base + first, count - first, at, step, OUT_BFLOAT, BASE_BFLOAT)


@triton.jit(do_not_specialize=SCALARS)
def accumulate(
    out, base, count, key, tensor, seeds, coefficients, terms, table,
    KIND: tl.constexpr, PER_WORD: tl.constexpr, LANES: tl.constexpr,
    OUT_BFLOAT: tl.constexpr, BASE_BFLOAT: tl.constexpr,
):  # fmt: skip
    """Form `out = (base + a_1 z_1) + a_2 z_2 ...` in the order given; all terms of a tile in one pass over memory.

    `seeds` are int32 [terms, 2], the low halves first; `coefficients` int32 [terms], the bits of a_k.
    """
    first = tl.program_id(0).to(tl.int64) * (LANES * WORDS * PER_WORD)
    blocks = stream_blocks(first, PER_WORD, LANES)
    at = places(tl.arange(0, LANES), LANES, PER_WORD)
    inside = at < count - first
    total = read(base + first, at, inside, BASE_BFLOAT)
    for k in range(terms):
        low, high = tl.load(seeds + 2 * k), tl.load(seeds + 2 * k + 1)
        total += term(key, tensor, low, high, tl.load(coefficients + k), table, blocks, KIND, 1, LANES)
    write(out + first, at, inside, total, OUT_BFLOAT)


@triton.jit
def walsh(x, SIZE: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr):
    """Apply the butterflies of span 2^FIRST, ..., 2^(LAST - 1), in this order, to float32 [SIZE]."""
    for m in tl.static_range(FIRST, LAST):
        pairs = tl.reshape(x, (SIZE // (2 << m), 2, 1 << m))
        low, high = tl.split(tl.permute(pairs, (0, 2, 1)))
        x = tl.reshape(tl.permute(tl.join(low + high, low - high), (0, 2, 1)), (SIZE,))
    return x


@triton.jit
def signed_coefficients(key, tensor, coefficients, blocks, PADDED: tl.constexpr, LANES: tl.constexpr):
    """Return `a[i] S_b[i]` of the elements bP + i of a tile: float32 [LANES * 512]."""
    nil = tensor * 0
    signs = sign_bits(key_stream(key, tensor, nil + 1, nil, blocks, LANES))
    many: tl.constexpr = PADDED // 512 if PADDED > 512 else 1
    inside = places((blocks & (many - 1)).to(tl.int32), LANES, 32) & (PADDED - 1)
    return tl.reshape(flipped(tl.load(coefficients + inside), signs), (LANES * 512,))


@triton.jit
def row_signed(key, tensor, x, blocks, LANES: tl.constexpr):
    """Return `D x` as a tile: float32 [LANES * 16, 32], for `x` float32 [LANES * 512]."""
    nil = tensor * 0
    signs = sign_bits(key_stream(key, tensor, nil, nil, blocks, LANES))
    return flipped(tl.reshape(x, (LANES * WORDS, 32)), signs)


@triton.jit(do_not_specialize=SCALARS)
def transform(
    out, base, count, key, tensor, coefficients,
    PADDED: tl.constexpr, LEVELS: tl.constexpr, LANES: tl.constexpr,
    OUT_BFLOAT: tl.constexpr, BASE_BFLOAT: tl.constexpr,
):  # fmt: skip
    """Replay a Hadamard pool whose blocks of P = 2^LEVELS elements fit a tile: `out = base + D H (S a)`."""
    first = tl.program_id(0).to(tl.int64) * (LANES * 512)
    blocks = stream_blocks(first, 32, LANES)
    x = signed_coefficients(key, tensor, coefficients, blocks, PADDED, LANES)
    x = walsh(x, LANES * 512, 0, LEVELS)
    total = row_signed(key, tensor, x, blocks, LANES)
    at = places(tl.arange(0, LANES), LANES, 32)
    add(out + first, base + first, count - first, at, total, OUT_BFLOAT, BASE_BFLOAT)


@triton.jit(do_not_specialize=SCALARS)
def transform_rows(
    scratch, start, key, tensor, coefficients,
    PADDED: tl.constexpr, LEVELS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Apply the butterflies within rows of 512 LANES = 2^LEVELS elements of a larger block, into float32 scratch.

    `scratch` begins with element `start` of the tensor.
    """
    first = tl.program_id(0).to(tl.int64) * (LANES * 512)
    blocks = stream_blocks(first + start, 32, LANES)
    x = signed_coefficients(key, tensor, coefficients, blocks, PADDED, LANES)
    x = walsh(x, LANES * 512, 0, LEVELS)
    tl.store(scratch + first + places(tl.arange(0, LANES), LANES, 32), tl.reshape(x, (LANES * WORDS, 32)))


@triton.jit(do_not_specialize=SCALARS)
def transform_columns(
    out, base, count, start, scratch, key, tensor,
    ROW: tl.constexpr, ROWS: tl.constexpr, LEVELS: tl.constexpr,
    OUT_BFLOAT: tl.constexpr, BASE_BFLOAT: tl.constexpr,
):  # fmt: skip
    """Finish a replay: butterflies between the ROWS = 2^LEVELS rows of a block, 512 columns a program, signs, base.

    All three tensors begin with element `start` of the whole one.
    """
    across: tl.constexpr = ROW // 512
    first = (tl.program_id(0) // across).to(tl.int64) * (ROW * ROWS)
    local = tl.arange(0, ROWS) * across + tl.program_id(0) % across
    at = places(local, ROWS, 32)
    x = tl.reshape(tl.load(scratch + first + at), (ROWS * 512,))
    x = walsh(x, ROWS * 512, 9, 9 + LEVELS)
    blocks = ((first + start) // 512).to(tl.uint32) + local.to(tl.uint32)
    total = row_signed(key, tensor, x, blocks, ROWS)
    add(out + first, base + first, count - first, at, total, OUT_BFLOAT, BASE_BFLOAT)
