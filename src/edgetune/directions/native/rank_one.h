/* Sums of directions of rank one added to a matrix, compiled once for every instruction set (see tiling.h). */

/* Signs of a stream from block `block` on, in whole words of 32. */
TARGET static void NAME(draw_signs)(const job *task, uint64_t seed, int64_t block, int64_t count, float *to) {
    uint32_t bits[LANES * WORDS];
    for (int64_t at = 0; at < count; at += CHUNK) {
        NAME(sign_bits)(task, seed, block + at / BLOCK, bits);
        for (int i = 0; i < LANES * WORDS && at + 32 * i < count; i++)
            for (int part = 0; part < 32; part += WIDE)
                NAME(store_f)(to + at + 32 * i + part, (VF)((VU)SPLAT(1.0f) ^ NAME(signs)(bits[i], part)));
    }
}

/* Rows first ... last - 1 of base + D tile(core) E. */
TARGET static int NAME(add_core)(const void *told, int64_t first, int64_t last) {
    const ranked *r = told;
    const job *task = &r->task;
    const int64_t columns = r->columns, from = first / BLOCK * BLOCK;
    float strip[16 * TILE], *e = malloc((size_t)((columns + 31) / 32 * 32 + (last - from + 31) / 32 * 32) * sizeof(float));
    float *d = e + (columns + 31) / 32 * 32;
    if (!e) return 2;
    NAME(draw_signs)(task, r->column_seed, r->column_block, columns, e);
    if (r->signed_rows) NAME(draw_signs)(task, r->row_seed, from / BLOCK, last - from, d);
    for (int64_t row = first; row < last; row++) {
        const float *g = r->core + (row & (r->tall - 1)) * r->wide, sign = r->signed_rows ? d[row - from] : 1.0f;
        const int64_t at = row * columns;
        if (task->out_dtype == FLOAT32 && task->base_dtype == FLOAT32) {
            float *out = (float *)task->out + at;
            const float *base = (const float *)task->base + at;
            if (r->streams && !((uintptr_t)out % (4 * WIDE))) NAME(add_tiles_of)(1, out, base, e, columns, g, r->wide, 0, sign);
            else NAME(add_tiles)(out, base, e, columns, g, r->wide, 0, sign);
            continue;
        }
        for (int64_t j = 0; j < columns; j += 16 * TILE) {
            const int64_t count = columns - j < 16 * TILE ? columns - j : 16 * TILE;
            NAME(read_base)(task, at + j, count, strip);
            NAME(add_tiles)(strip, strip, e + j, count, g, r->wide, j, sign);
            write_out(task, at + j, count, strip);
        }
    }
    FENCE;
    free(e);
    return 0;
}

/* What a thread needs to add terms: signs of all of them as bits, and room for a block of rows. */
typedef struct {
    int64_t pitch;          /* floats from row to row of `sums` */
    int64_t across, down;   /* words of v and of u that a term has */
    uint32_t *v, *u;        /* [terms][across], [terms][down] */
    float *sums, *scales, *panel;  /* [ROWS][pitch], [ROWS][STEP], [GROUP][2 WIDE] of v */
} NAME(room);

/* The sign bits of every term: all of v, and u from the block of row `from` on. */
TARGET static void NAME(draw_terms)(const ranked *r, int64_t from, const NAME(room) *have) {
    uint32_t bits[LANES * WORDS];
    for (int t = 0; t < r->task.terms; t++)
        for (int side = 0; side < 2; side++) {
            const int64_t words = side ? have->down : have->across, block = side ? from / BLOCK : r->column_block;
            uint32_t *to = (side ? have->u : have->v) + t * words;
            for (int64_t at = 0; at < words; at += LANES * WORDS) {
                const int64_t count = words - at < LANES * WORDS ? words - at : LANES * WORDS;
                NAME(sign_bits)(&r->task, r->task.seeds[t], block + at / WORDS, bits);
                memcpy(to + at, bits, (size_t)count * 4);
            }
        }
}

/* Add terms first ... first + terms - 1 to a block of rows that lies in `sums`; `row` is counted from where u begins. */
TARGET static void NAME(add_group)(const ranked *r, int first, int terms, int64_t row, const NAME(room) *have) {
    coming ahead = {NULL, 0, 0, 0, 0, 0};
    for (int o = 0; o < ROWS; o++)
        for (int k = 0; k < terms; k++) {
            const uint32_t word = have->u[(first + k) * have->down + (row + o) / 32];
            const float a = r->task.coefficients[first + k];
            have->scales[o * STEP + k] = word >> ((row + o) % 32) & 1 ? -a : a;
        }
    for (int64_t j = 0; j < r->columns; j += 2 * WIDE) {
        const VU one = (VU)SPLAT(1.0f);
        for (int k = 0; k < terms; k++) {
            const uint32_t word = have->v[(first + k) * have->across + j / 32];
            NAME(store_f)(have->panel + k * 2 * WIDE, (VF)(one ^ NAME(signs)(word, (int)(j % 32))));
            NAME(store_f)(have->panel + k * 2 * WIDE + WIDE, (VF)(one ^ NAME(signs)(word, (int)(j % 32) + WIDE)));
        }
        for (int o = 0; o < ROWS; o += ACROSS / 2)
            NAME(tile_of_two)(have->scales + o * STEP, have->panel, terms, 1, have->sums + o * have->pitch + j, have->pitch, &ahead);
    }
}

/* Rows first ... last - 1 of ((base + a_1 u_1 v_1^T) + a_2 u_2 v_2^T) + ... */
TARGET static int NAME(add_rank_one)(const void *told, int64_t first, int64_t last) {
    const ranked *r = told;
    const job *task = &r->task;
    const int64_t from = first / BLOCK * BLOCK, columns = r->columns;
    NAME(room) have = {(columns + 31) / 32 * 32 + LANES, (columns + 31) / 32, (last - from + 31) / 32 + 2 * ROWS / 32, 0, 0, 0, 0, 0};
    const size_t floats = (size_t)(ROWS * (have.pitch + STEP) + GROUP * 2 * WIDE);
    float *room = calloc(floats + (size_t)(task->terms * (have.across + have.down)), 4);
    if (!room) return 2;
    have.sums = room;
    have.scales = have.sums + ROWS * have.pitch;
    have.panel = have.scales + ROWS * STEP;
    have.v = (uint32_t *)room + floats;
    have.u = have.v + task->terms * have.across;
    NAME(draw_terms)(r, from, &have);
    for (int64_t row = first; row < last; row += ROWS) {
        const int64_t rows = last - row < ROWS ? last - row : ROWS;
        for (int64_t o = 0; o < rows; o++) NAME(read_base)(task, (row + o) * columns, columns, have.sums + o * have.pitch);
        for (int t = 0; t < task->terms; t += GROUP)
            NAME(add_group)(r, t, task->terms - t < GROUP ? task->terms - t : GROUP, row - from, &have);
        for (int64_t o = 0; o < rows; o++) write_out(task, (row + o) * columns, columns, have.sums + o * have.pitch);
    }
    free(room);
    return 0;
}
