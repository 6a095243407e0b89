/* The inner loops, compiled once for every instruction set (see kernel.c). NAME and TARGET are defined by the includer.
 *
 * Loops over LANES are what the compiler vectorises: one lane is one ChaCha20 block.
 */

#define ROTATE(x, n) (((x) << (n)) | ((x) >> (32 - (n))))
#define QUARTER(a, b, c, d)                                                            \
    for (int l = 0; l < LANES; l++) { s[a][l] += s[b][l]; s[d][l] = ROTATE(s[d][l] ^ s[a][l], 16); } \
    for (int l = 0; l < LANES; l++) { s[c][l] += s[d][l]; s[b][l] = ROTATE(s[b][l] ^ s[c][l], 12); } \
    for (int l = 0; l < LANES; l++) { s[a][l] += s[b][l]; s[d][l] = ROTATE(s[d][l] ^ s[a][l], 8); }  \
    for (int l = 0; l < LANES; l++) { s[c][l] += s[d][l]; s[b][l] = ROTATE(s[b][l] ^ s[c][l], 7); }

/* LANES key stream blocks at counters `first`, `first + stride`, ...; words[w][l] is word w of block l (RFC 8439). */
TARGET static void NAME(chacha)(const job *task, uint64_t seed, uint32_t first, uint32_t stride,
                                uint32_t words[WORDS][LANES]) {
    const uint32_t start[WORDS] = {
        0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u,
        task->key[0], task->key[1], task->key[2], task->key[3],
        task->key[4], task->key[5], task->key[6], task->key[7],
        0, task->tensor, (uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t s[WORDS][LANES];
    for (int w = 0; w < WORDS; w++)
        for (int l = 0; l < LANES; l++) s[w][l] = start[w];
    for (int l = 0; l < LANES; l++) s[12][l] = first + stride * (uint32_t)l;
    for (int round = 0; round < 10; round++) {
        QUARTER(0, 4, 8, 12) QUARTER(1, 5, 9, 13) QUARTER(2, 6, 10, 14) QUARTER(3, 7, 11, 15)
        QUARTER(0, 5, 10, 15) QUARTER(1, 6, 11, 12) QUARTER(2, 7, 8, 13) QUARTER(3, 4, 9, 14)
    }
    for (int w = 0; w < WORDS; w++)
        for (int l = 0; l < LANES; l++) words[w][l] = s[w][l] + start[w];
    for (int l = 0; l < LANES; l++) words[12][l] += first + stride * (uint32_t)l;
}

/* Sign bits of CHUNK elements from block `first`, in element order: bit j of bits[i] is element 32 i + j. */
TARGET static void NAME(sign_bits)(const job *task, uint64_t seed, int64_t first, uint32_t bits[LANES * WORDS]) {
    uint32_t words[WORDS][LANES];
    NAME(chacha)(task, seed, (uint32_t)first, 1, words);
    for (int l = 0; l < LANES; l++)
        for (int w = 0; w < WORDS; w++) bits[l * WORDS + w] = words[w][l];
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

/* Turn row signs of CHUNK elements from element `first` into the signs of Hadamard direction k. */
TARGET static void NAME(hadamard_bits)(const job *task, uint64_t k, int64_t first, columns *known,
                                       uint32_t bits[LANES * WORDS]) {
    static const uint32_t masks[5] = {0xaaaaaaaau, 0xccccccccu, 0xf0f0f0f0u, 0xff00ff00u, 0xffff0000u};
    int shift = 0;
    while (1u << shift < task->padded) shift++;
    const int64_t step = task->padded >= 32 ? 32 : task->padded; /* elements whose sign pattern is one known word */
    uint32_t pattern = 0; /* (-1)^popcount(i & k) of the five low index bits, as bits */
    for (int m = 0; m < 5; m++)
        if (k >> m & 1) pattern ^= masks[m];
    for (int i = 0; i < LANES * WORDS; i++) {
        uint32_t flip = 0;
        for (int64_t j = 0; j < 32; j += step) {
            int64_t element = first + 32 * (int64_t)i + j, block = element >> shift;
            if (known->first < 0 || block < known->first || block >= known->first + LANES) {
                known->first = block;
                NAME(column_bits)(task, k, block, known->bits);
            }
            uint32_t parity = (uint32_t)(element & (task->padded - 1)) >> 5 & (uint32_t)(k >> 5);
            parity ^= parity >> 16; parity ^= parity >> 8; parity ^= parity >> 4;
            uint32_t odd = (0x6996u >> (parity & 15) & 1) ^ known->bits[block - known->first];
            uint32_t inside = step == 32 ? ~0u : ((1u << step) - 1) << j;
            flip |= (pattern ^ (0u - odd)) & inside;
        }
        bits[i] ^= flip;
    }
}

/* to[e] = from[e] + (bit e ? -c : c); `to` may be `from` */
TARGET static void NAME(add_signs)(float *to, const float *from, const uint32_t *restrict bits, float c, int words) {
    const float plus = c, minus = -c;
    for (int i = 0; i < words; i++) {
        float sum[32];
        const uint32_t word = bits[i];
        for (int j = 0; j < 32; j++) sum[j] = from[32 * i + j] + ((word & one_bit[j]) ? minus : plus);
        for (int j = 0; j < 32; j++) to[32 * i + j] = sum[j];
    }
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
    NAME(sign_bits)(task, task->kind == HADAMARD ? 0 : task->seeds[t], at / BLOCK, bits);
    if (task->kind != HADAMARD) return;
    if (task->terms > 1) known->first = -1;
    NAME(hadamard_bits)(task, task->seeds[t], at, known, bits);
}

/* Elements [first, last): base plus the sum of all terms, chunk by chunk, so that memory is passed once. */
TARGET static int NAME(sum)(const job *task, int64_t first, int64_t last) {
    uint32_t bits[LANES * WORDS];
    columns known = {-1, {0}};
    float total[CHUNK];
    int direct = task->terms == 1 && task->kind != GAUSSIAN && task->out_dtype == FLOAT32 && task->base_dtype == FLOAT32;
    for (int64_t at = first; at < last; at += CHUNK) {
        int64_t count = last - at < CHUNK ? last - at : CHUNK;
        if (direct && count == CHUNK) {
            NAME(direction_bits)(task, 0, at, &known, bits);
            NAME(add_signs)((float *)task->out + at, (const float *)task->base + at, bits, task->coefficients[0],
                            LANES * WORDS);
            continue;
        }
        memset(total, 0, sizeof total);
        for (int t = 0; t < task->terms; t++) {
            if (task->kind == GAUSSIAN) {
                NAME(add_gaussian)(task, task->seeds[t], task->coefficients[t], at, total);
            } else {
                NAME(direction_bits)(task, t, at, &known, bits);
                NAME(add_signs)(total, total, bits, task->coefficients[t], LANES * WORDS);
            }
        }
        float base[CHUNK];
        read_base(task, at, count, base);
        for (int64_t i = 0; i < count; i++) base[i] = total[i] + base[i];
        write_out(task, at, count, base);
    }
    return 0;
}

/* Walsh-Hadamard transform in place, spans 1, 2, 4, ... (in this order: it fixes the rounding).
 *
 * The first four spans stay within 16 neighbours; the others go two at a time, 16 neighbours together, which halves the
 * passes over the block without changing a single addition.
 */
TARGET static void NAME(walsh)(float *x, uint32_t size) {
    uint32_t span = 1;
    if (size >= 16) {
        for (uint32_t i = 0; i < size; i += 16) {
            float a[16], b[16];
            for (int j = 0; j < 16; j++) a[j] = x[i + j];
            for (int j = 0; j < 16; j += 2) { b[j] = a[j] + a[j + 1]; b[j + 1] = a[j] - a[j + 1]; }
            for (int j = 0; j < 16; j += 4)
                for (int l = j; l < j + 2; l++) { a[l] = b[l] + b[l + 2]; a[l + 2] = b[l] - b[l + 2]; }
            for (int j = 0; j < 16; j += 8)
                for (int l = j; l < j + 4; l++) { b[l] = a[l] + a[l + 4]; b[l + 4] = a[l] - a[l + 4]; }
            for (int l = 0; l < 8; l++) { a[l] = b[l] + b[l + 8]; a[l + 8] = b[l] - b[l + 8]; }
            for (int j = 0; j < 16; j++) x[i + j] = a[j];
        }
        span = 16;
    }
    for (; span >= 16 && 4 * span <= size; span *= 4)
        for (uint32_t i = 0; i < size; i += 4 * span)
            for (uint32_t j = i; j < i + span; j += 16) {
                float a[16], b[16], c[16], d[16], low[16], high[16];
                for (int l = 0; l < 16; l++) { a[l] = x[j + l]; b[l] = x[j + span + l]; }
                for (int l = 0; l < 16; l++) { c[l] = x[j + 2 * span + l]; d[l] = x[j + 3 * span + l]; }
                for (int l = 0; l < 16; l++) { low[l] = a[l] + b[l]; high[l] = c[l] + d[l]; }
                for (int l = 0; l < 16; l++) { x[j + l] = low[l] + high[l]; x[j + 2 * span + l] = low[l] - high[l]; }
                for (int l = 0; l < 16; l++) { low[l] = a[l] - b[l]; high[l] = c[l] - d[l]; }
                for (int l = 0; l < 16; l++) { x[j + span + l] = low[l] + high[l]; x[j + 3 * span + l] = low[l] - high[l]; }
            }
    for (; span < size; span *= 2)
        for (uint32_t i = 0; i < size; i += 2 * span)
            for (uint32_t j = i; j < i + span; j++) {
                float low = x[j], high = x[j + span];
                x[j] = low + high;
                x[j + span] = low - high;
            }
}

/* x[e] = bit e ? -x[e] : x[e] */
TARGET static void NAME(flip_signs)(float *restrict x, const uint32_t *restrict bits, int words) {
    for (int i = 0; i < words; i++) {
        const uint32_t word = bits[i];
        for (int j = 0; j < 32; j++) x[32 * i + j] = (word & one_bit[j]) ? -x[32 * i + j] : x[32 * i + j];
    }
}

/* Replay of a whole Hadamard pool on elements [first, last); `first` is a multiple of max(padded, CHUNK). */
TARGET static int NAME(transform)(const job *task, int64_t first, int64_t last) {
    uint32_t padded = task->padded, bits[LANES * WORDS];
    int64_t unit = padded > CHUNK ? padded : CHUNK;
    float *x = malloc((size_t)unit * 2 * sizeof(float)), *base = x + unit;
    if (!x) return 2;
    for (int64_t at = first; at < last; at += unit) {
        int64_t count = last - at < unit ? last - at : unit;
        int64_t whole = (count + padded - 1) / padded * padded;
        for (int64_t i = 0; i < unit; i += padded)
            memcpy(x + i, task->coefficients, padded * sizeof(float));
        for (int64_t i = 0; i < whole; i += CHUNK) {
            NAME(sign_bits)(task, 1, (at + i) / BLOCK, bits);
            NAME(flip_signs)(x + i, bits, LANES * WORDS);
        }
        for (int64_t i = 0; i < whole; i += padded) NAME(walsh)(x + i, padded);
        for (int64_t i = 0; i < whole; i += CHUNK) {
            NAME(sign_bits)(task, 0, (at + i) / BLOCK, bits);
            NAME(flip_signs)(x + i, bits, LANES * WORDS);
        }
        read_base(task, at, count, base);
        for (int64_t i = 0; i < count; i++) base[i] = x[i] + base[i];
        write_out(task, at, count, base);
    }
    free(x);
    return 0;
}

#undef QUARTER
#undef ROTATE
