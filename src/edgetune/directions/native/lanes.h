/* The inner loops, compiled once for every instruction set (see kernel.c).
 *
 * The includer defines NAME (adds the set's suffix), TARGET (its attribute) and WIDE, the lanes of one vector: 16, 8 or 4.
 * A lane is one ChaCha20 block, or one of WIDE neighbouring weights.
 */

#define ROTATE(x, n) (((x) << (n)) | ((x) >> (32 - (n))))
#define QUARTER(a, b, c, d)                        \
    a += b; d ^= a; d = ROTATE(d, 16);             \
    c += d; b ^= c; b = ROTATE(b, 12);             \
    a += b; d ^= a; d = ROTATE(d, 8);              \
    c += d; b ^= c; b = ROTATE(b, 7);

/* LANES key stream blocks at counters `first`, `first + stride`, ...; words[w][l] is word w of block l (RFC 8439). */
TARGET static void NAME(chacha)(const job *task, uint64_t seed, uint32_t first, uint32_t stride,
                                uint32_t words[WORDS][LANES]) {
    const uint32_t start[WORDS] = {
        0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u,
        task->key[0], task->key[1], task->key[2], task->key[3],
        task->key[4], task->key[5], task->key[6], task->key[7],
        0, task->tensor, (uint32_t)seed, (uint32_t)(seed >> 32)};
    for (int part = 0; part < LANES; part += WIDE) {
        uint32_t counters[WIDE];
        for (int l = 0; l < WIDE; l++) counters[l] = first + stride * (uint32_t)(part + l);
        const VU counter = NAME(load_u)(counters), zero = {0};
        VU s0 = zero + start[0], s1 = zero + start[1], s2 = zero + start[2], s3 = zero + start[3];
        VU s4 = zero + start[4], s5 = zero + start[5], s6 = zero + start[6], s7 = zero + start[7];
        VU s8 = zero + start[8], s9 = zero + start[9], s10 = zero + start[10], s11 = zero + start[11];
        VU s12 = counter, s13 = zero + start[13], s14 = zero + start[14], s15 = zero + start[15];
        for (int round = 0; round < 10; round++) {
            QUARTER(s0, s4, s8, s12) QUARTER(s1, s5, s9, s13) QUARTER(s2, s6, s10, s14) QUARTER(s3, s7, s11, s15)
            QUARTER(s0, s5, s10, s15) QUARTER(s1, s6, s11, s12) QUARTER(s2, s7, s8, s13) QUARTER(s3, s4, s9, s14)
        }
        const VU end[WORDS] = {s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12 + counter, s13, s14, s15};
        for (int w = 0; w < WORDS; w++) {
            VU word = w == 12 ? end[w] : end[w] + start[w];
            memcpy(&words[w][part], &word, sizeof word);
        }
    }
}

/* The sign bits of WIDE elements, in place for an exclusive or: bit 31 of lane l is bit `shift + l` of `word`. */
TARGET static inline VU NAME(signs)(uint32_t word, int shift) {
    const VU zero = {0};
    return ((zero + word) << (31 - shift - NAME(load_u)(lane_number))) & 0x80000000u;
}

/* Sign bits of CHUNK elements from block `first`, in element order: bit j of bits[i] is element 32 i + j. */
TARGET static void NAME(sign_bits)(const job *task, uint64_t seed, int64_t first, uint32_t bits[LANES * WORDS]) {
    uint32_t words[WORDS][LANES];
    NAME(chacha)(task, seed, (uint32_t)first, 1, words);
    for (int w = 0; w < WORDS; w += WIDE)
        for (int l = 0; l < LANES; l += WIDE)
            NAME(turn)((const float *)&words[w][l], LANES, (float *)(bits + l * WORDS + w), WORDS);
}

/* Bit k of the column signs of Hadamard blocks first ... first + LANES - 1. */
TARGET static void NAME(column_bits)(const job *task, uint64_t k, int64_t first, uint32_t bits[LANES]) {
    uint32_t words[WORDS][LANES];
    if (task->padded >= BLOCK) { /* one key stream block each, a fixed stride apart */
        uint64_t element = (uint64_t)first * task->padded + k;
        NAME(chacha)(task, 1, (uint32_t)(element / BLOCK), task->padded / BLOCK, words);
        for (int l = 0; l < LANES; l++) bits[l] = words[element % BLOCK / 32][l] >> (element % 32) & 1;
        return;
    }
    int64_t drawn = -1;
    for (int b = 0; b < LANES; b++) { /* several Hadamard blocks share one key stream block */
        uint64_t element = (uint64_t)(first + b) * task->padded + k;
        int64_t block = (int64_t)(element / BLOCK);
        if (drawn < 0 || block >= drawn + LANES) {
            drawn = block;
            NAME(chacha)(task, 1, (uint32_t)drawn, 1, words);
        }
        bits[b] = words[element % BLOCK / 32][block - drawn] >> (element % 32) & 1;
    }
}

/* (-1)^popcount(i & k) of the five low index bits, as the bits of a word. */
TARGET static uint32_t NAME(low_pattern)(uint64_t k) {
    static const uint32_t masks[5] = {0xaaaaaaaau, 0xccccccccu, 0xf0f0f0f0u, 0xff00ff00u, 0xffff0000u};
    uint32_t pattern = 0;
    for (int m = 0; m < 5; m++)
        if (k >> m & 1) pattern ^= masks[m];
    return pattern;
}

/* The column sign of a block, as a bit. */
TARGET static uint32_t NAME(column)(const job *task, uint64_t k, int64_t block, columns *known) {
    if (known->first < 0 || block < known->first || block >= known->first + LANES) {
        known->first = block;
        NAME(column_bits)(task, k, block, known->bits);
    }
    return known->bits[block - known->first];
}

/* Turn row signs of CHUNK elements from element `first` into the signs of Hadamard direction k. */
TARGET static void NAME(hadamard_bits)(const job *task, uint64_t k, int64_t first, columns *known,
                                       uint32_t bits[LANES * WORDS]) {
    const uint32_t pattern = NAME(low_pattern)(k), padded = task->padded;
    if (padded < 32) { /* several blocks share a word */
        const uint32_t inside = (1u << padded) - 1;
        for (int i = 0; i < LANES * WORDS; i++)
            for (uint32_t j = 0; j < 32; j += padded) {
                const uint32_t odd = NAME(column)(task, k, (first + 32 * (int64_t)i + j) / padded, known);
                bits[i] ^= (pattern ^ (0u - odd)) & inside << j;
            }
        return;
    }
    const uint32_t high = (uint32_t)(k >> 5), start = (uint32_t)(first >> 5), within = padded / 32 - 1;
    for (uint32_t i = 0; i < LANES * WORDS; i++) {
        uint32_t parity = (start + i) & within & high;
        parity ^= parity >> 16; parity ^= parity >> 8; parity ^= parity >> 4; parity ^= parity >> 2; parity ^= parity >> 1;
        bits[i] ^= pattern ^ (0u - (parity & 1));
    }
    const int words = padded / 32 < LANES * WORDS ? (int)(padded / 32) : LANES * WORDS;
    for (int i = 0; i < LANES * WORDS; i += words)
        if (NAME(column)(task, k, (first + 32 * (int64_t)i) / padded, known))
            for (int j = i; j < i + words; j++) bits[j] = ~bits[j];
}

/* to[e] = from[e] + (bit e ? -c : c); `to` may be `from` */
TARGET static void NAME(add_signs)(float *to, const float *from, const uint32_t *bits, float c, int words) {
    const VU pattern = (VU){0} + bits_of(c);
    for (int i = 0; i < words; i++)
        for (int part = 0; part < 32; part += WIDE)
            NAME(store_f)(to + 32 * i + part, NAME(load_f)(from + 32 * i + part) + (VF)(pattern ^ NAME(signs)(bits[i], part)));
}

TARGET static void NAME(add_gaussian)(const job *task, uint64_t seed, float c, int64_t first, float *to) {
    uint32_t words[WORDS][LANES];
    for (int part = 0; part < WORDS; part++) { /* 32 elements a block, LANES blocks at a time */
        NAME(chacha)(task, seed, (uint32_t)(first / 32 + part * LANES), 1, words);
        for (int l = 0; l < LANES; l++)
            for (int w = 0; w < WORDS; w++) {
                float *at = to + (part * LANES + l) * 32 + 2 * w;
                float low = c * task->table[words[w][l] & 0xffffu], high = c * task->table[words[w][l] >> 16];
                at[0] += low;
                at[1] += high;
            }
    }
}

/* Sign bits of CHUNK elements of term t; `known` lives as long as one term is walked through a range. */
TARGET static void NAME(direction_bits)(const job *task, int t, int64_t at, columns *known,
                                        uint32_t bits[LANES * WORDS]) {
    NAME(sign_bits)(task, task->kind == HADAMARD ? 0 : task->seeds[t], (task->start + at) / BLOCK, bits);
    if (task->kind != HADAMARD) return;
    if (task->terms > 1) known->first = -1;
    NAME(hadamard_bits)(task, task->seeds[t], task->start + at, known, bits);
}

/* Add all terms to the elements [at, at + CHUNK), one after the other. */
TARGET static void NAME(add_terms)(const job *task, int64_t at, columns *known, float *to) {
    uint32_t bits[LANES * WORDS];
    for (int t = 0; t < task->terms; t++) {
        if (task->kind == GAUSSIAN) {
            NAME(add_gaussian)(task, task->seeds[t], task->coefficients[t], task->start + at, to);
        } else {
            NAME(direction_bits)(task, t, at, known, bits);
            NAME(add_signs)(to, to, bits, task->coefficients[t], LANES * WORDS);
        }
    }
}

/* Elements [first, last): base and then the terms in their order, chunk by chunk, so that memory is passed once. */
TARGET static int NAME(sum)(const job *task, int64_t first, int64_t last) {
    uint32_t bits[LANES * WORDS];
    columns known = {-1, {0}};
    float total[CHUNK] = {0};
    int direct = task->terms == 1 && task->kind != GAUSSIAN && task->out_dtype == FLOAT32 && task->base_dtype == FLOAT32;
    for (int64_t at = first; at < last; at += CHUNK) {
        int64_t count = last - at < CHUNK ? last - at : CHUNK;
        if (direct && count == CHUNK) {
            NAME(direction_bits)(task, 0, at, &known, bits);
            NAME(add_signs)((float *)task->out + at, (const float *)task->base + at, bits, task->coefficients[0],
                            LANES * WORDS);
            continue;
        }
        NAME(read_base)(task, at, count, total);
        NAME(add_terms)(task, at, &known, total);
        write_out(task, at, count, total);
    }
    return 0;
}

/* One butterfly stage among the lanes of a vector: x_l + x_(l ^ span), or x_(l ^ span) - x_l where l has the span's bit. */
#if WIDE == 16
#define STAGE(x, bit, ...) (SHUFFLE(x, VU, __VA_ARGS__) + (VF)((VU)(x) ^ NAME(load_u)(lane_signs[bit])))
#define INSIDE(x)                                                            \
    x = STAGE(x, 0, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);   \
    x = STAGE(x, 1, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);   \
    x = STAGE(x, 2, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);   \
    x = STAGE(x, 3, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
#elif WIDE == 8
#define STAGE(x, bit, ...) (SHUFFLE(x, VU, __VA_ARGS__) + (VF)((VU)(x) ^ NAME(load_u)(lane_signs[bit])))
#define INSIDE(x)                                \
    x = STAGE(x, 0, 1, 0, 3, 2, 5, 4, 7, 6);     \
    x = STAGE(x, 1, 2, 3, 0, 1, 6, 7, 4, 5);     \
    x = STAGE(x, 2, 4, 5, 6, 7, 0, 1, 2, 3);
#else
#define STAGE(x, bit, ...) (SHUFFLE(x, VU, __VA_ARGS__) + (VF)((VU)(x) ^ NAME(load_u)(lane_signs[bit])))
#define INSIDE(x)                    \
    x = STAGE(x, 0, 1, 0, 3, 2);     \
    x = STAGE(x, 1, 2, 3, 0, 1);
#endif

/* x[i] = (bit i of columns ? -a[i] : a[i]), i < size, followed by the butterflies within each vector. */
TARGET static void NAME(first_stages)(float *x, const float *a, const uint32_t *columns, uint32_t size) {
    for (uint32_t i = 0; i < size; i += WIDE) {
        VF v = (VF)((VU)NAME(load_f)(a + i) ^ NAME(signs)(columns[i / 32], (int)(i % 32)));
        INSIDE(v)
        NAME(store_f)(x + i, v);
    }
}

/* The butterflies of span WIDE, 2 WIDE, ... size / 2, two spans at a time: half the passes, not one addition changed. */
TARGET static void NAME(other_stages)(float *x, uint32_t size) {
    uint32_t span = WIDE;
    for (; 4 * span <= size; span *= 4)
        for (uint32_t i = 0; i < size; i += 4 * span)
            for (float *at = x + i; at < x + i + span; at += WIDE) {
                VF a = NAME(load_f)(at), b = NAME(load_f)(at + span);
                VF c = NAME(load_f)(at + 2 * span), d = NAME(load_f)(at + 3 * span);
                VF ab = a + b, cd = c + d;
                a -= b;
                c -= d;
                NAME(store_f)(at, ab + cd);
                NAME(store_f)(at + span, a + c);
                NAME(store_f)(at + 2 * span, ab - cd);
                NAME(store_f)(at + 3 * span, a - c);
            }
    for (; span < size; span *= 2)
        for (uint32_t i = 0; i < size; i += 2 * span)
            for (float *at = x + i; at < x + i + span; at += WIDE) {
                VF a = NAME(load_f)(at), b = NAME(load_f)(at + span);
                NAME(store_f)(at, a + b);
                NAME(store_f)(at + span, a - b);
            }
}

/* The transform of a block shorter than 32, without vectors: its signs start within a word. */
TARGET static void NAME(short_block)(float *x, const float *a, const uint32_t *columns, uint32_t from, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) x[i] = columns[(from + i) / 32] >> ((from + i) % 32) & 1 ? -a[i] : a[i];
    for (uint32_t span = 1; span < size; span *= 2)
        for (uint32_t i = 0; i < size; i += 2 * span)
            for (uint32_t j = i; j < i + span; j++) {
                float low = x[j], high = x[j + span];
                x[j] = low + high;
                x[j + span] = low - high;
            }
}

/* x[e] = (bit e ? -x[e] : x[e]) + base[e], the last pass over CHUNK elements */
TARGET static void NAME(finish)(float *to, const float *x, const float *base, const uint32_t *bits) {
    for (int i = 0; i < LANES * WORDS; i++)
        for (int part = 0; part < 32; part += WIDE) {
            VU v = (VU)NAME(load_f)(x + 32 * i + part) ^ NAME(signs)(bits[i], part);
            NAME(store_f)(to + 32 * i + part, (VF)v + NAME(load_f)(base + 32 * i + part));
        }
}

/* Replay of a whole Hadamard pool on elements [first, last); `first` is a multiple of max(padded, CHUNK). */
TARGET static int NAME(transform)(const job *task, int64_t first, int64_t last) {
    const uint32_t padded = task->padded;
    const int64_t unit = padded > CHUNK ? padded : CHUNK;
    const int direct = task->out_dtype == FLOAT32 && task->base_dtype == FLOAT32;
    uint32_t bits[LANES * WORDS], *columns = malloc((size_t)unit / 8);
    float base[CHUNK], *x = malloc((size_t)unit * sizeof(float));
    if (!x || !columns) { free(x); free(columns); return 2; }
    for (int64_t at = first; at < last; at += unit) {
        int64_t count = last - at < unit ? last - at : unit;
        for (int64_t i = 0; i < unit && i < count + padded; i += CHUNK)
            NAME(sign_bits)(task, 1, (task->start + at + i) / BLOCK, columns + i / 32);
        for (int64_t i = 0; i < count; i += padded) {
            if (padded < 32) {
                NAME(short_block)(x + i, task->coefficients, columns, (uint32_t)i, padded);
                continue;
            }
            NAME(first_stages)(x + i, task->coefficients, columns + i / 32, padded);
            NAME(other_stages)(x + i, padded);
        }
        for (int64_t i = 0; i < count; i += CHUNK) {
            int64_t part = count - i < CHUNK ? count - i : CHUNK;
            NAME(sign_bits)(task, 0, (task->start + at + i) / BLOCK, bits);
            if (direct && part == CHUNK) {
                NAME(finish)((float *)task->out + at + i, x + i, (const float *)task->base + at + i, bits);
                continue;
            }
            NAME(read_base)(task, at + i, part, base);
            NAME(finish)(base, x + i, base, bits);
            write_out(task, at + i, part, base);
        }
    }
    free(x);
    free(columns);
    return 0;
}
