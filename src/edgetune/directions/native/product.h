/* Products with perturbed matrices, compiled once for every instruction set (see product_job.h).
 *
 * Lanes run along the rows of x, which is transposed once. The matrix is perturbed a small block at a time, for both points,
 * and multiplied from the cache: memory sees it once for both halves of a step, and nothing is written there but y.
 *
 * The includer defines NAME, TARGET and WIDE as for lanes.h, ACROSS (outputs of a tile that is one vector wide), RUN (columns
 * of a tile between prefetches), SPLAT(x) and FMA(a, b, c) = a b + c.
 */

/* to[j][i] = from[i][j] for `rows` rows and `columns` columns; where `padded` is more than `rows`, zeros follow. */
TARGET static void NAME(transpose)(const float *from, int64_t from_step, int64_t rows, int64_t columns, int64_t padded,
                                   float *to, int64_t to_step) {
    for (int64_t i = 0; i < padded; i += WIDE) {
        int64_t j = 0;
        if (i + WIDE <= rows)
            for (; j + WIDE <= columns; j += WIDE) NAME(turn)(from + i * from_step + j, from_step, to + j * to_step + i, to_step);
        const int64_t end = i + WIDE < padded ? i + WIDE : padded;
        for (; j < columns; j++)
            for (int64_t r = i; r < end; r++) to[j * to_step + r] = r < rows ? from[r * from_step + j] : 0.0f;
    }
}

/* x^T, two vectors of rows after another, the last of a point perhaps one; shares first ... last - 1, counted through all points. */
TARGET static void NAME(turn_x)(const product *p, int64_t first, int64_t last) {
    const int64_t shares = (p->padded + SHARE - 1) / SHARE;
    for (int64_t share = first; share < last; share++) {
        const int64_t point = share / shares, from = share % shares * SHARE;
        for (int64_t row = from; row < from + SHARE && row < p->padded; row += 2 * WIDE) {
            const int64_t width = p->padded - row < 2 * WIDE ? WIDE : 2 * WIDE;
            NAME(transpose)(p->x + (point * p->rows + row) * p->depth, p->depth, p->rows - row, p->depth, width,
                            p->across + (point * p->padded + row) * p->depth, width);
        }
    }
}

/* How elements of a matrix are perturbed: signs, and one factor a point; and the step that they take before, for good. */
typedef struct {
    const uint32_t *bits, *before;  /* signs from a chunk's first element on */
    const float *scales;
    float step;
} NAME(change);

/* to[p][i] = w[i] + (bit first + i ? -scales[p] : scales[p]), after w[i] += (bit of `before` ? -step : step) if it `folds`.
 * The points, `apart` floats from each other, and whether it folds are constants after inlining. */
TARGET static inline __attribute__((always_inline)) void NAME(change_of)(
    const int points, const int folds, const NAME(change) *by, float *w, int64_t first, int64_t count, float *to, int64_t apart) {
    const VU moving = (VU){0} + bits_of(by->step);
    const VU pattern[2] = {(VU){0} + bits_of(by->scales[0]), (VU){0} + bits_of(by->scales[points - 1])};
    const uint32_t *bits = by->bits, *before = by->before;
    const int shift = (int)(first % 32);
    int64_t i = 0;
    for (int64_t word = first / 32; i + 32 <= count; i += 32, word++) {
        const uint32_t now = (uint32_t)(((uint64_t)bits[word + 1] << 32 | bits[word]) >> shift);
        const uint32_t then = folds ? (uint32_t)(((uint64_t)before[word + 1] << 32 | before[word]) >> shift) : 0;
        UNROLL for (int part = 0; part < 32; part += WIDE) {
            VF value = NAME(load_f)(w + i + part);
            if (folds) {
                value += (VF)(moving ^ NAME(signs)(then, part));
                NAME(store_f)(w + i + part, value);
            }
            const VU signs = NAME(signs)(now, part);
            for (int p = 0; p < points; p++) NAME(store_f)(to + p * apart + i + part, value + (VF)(pattern[p] ^ signs));
        }
    }
    for (int64_t bit = first + i; i < count; i++, bit++) {
        if (folds) w[i] += before[bit / 32] >> (bit % 32) & 1 ? -by->step : by->step;
        const float value = w[i];
        for (int p = 0; p < points; p++)
            to[p * apart + i] = value + (bits[bit / 32] >> (bit % 32) & 1 ? -by->scales[p] : by->scales[p]);
    }
}

TARGET static void NAME(change_at)(int points, const NAME(change) *by, float *w, int64_t first, int64_t count, float *to, int64_t apart) {
    if (points == 2 && by->before) NAME(change_of)(2, 1, by, w, first, count, to, apart);
    else if (points == 2) NAME(change_of)(2, 0, by, w, first, count, to, apart);
    else if (by->before) NAME(change_of)(1, 1, by, w, first, count, to, apart);
    else NAME(change_of)(1, 0, by, w, first, count, to, apart);
}

/* All of w at every point, into y. */
TARGET static void NAME(points)(const product *p) {
    uint32_t bits[LANES * WORDS + 1];
    columns known = {-1, {0}};
    const int64_t count = p->outs * p->depth;
    const NAME(change) by = {bits, NULL, p->scales, 0.0f};
    bits[LANES * WORDS] = 0;
    for (int64_t at = 0; at < count; at += CHUNK) {
        NAME(direction_bits)(&p->direction, 0, at, &known, bits);
        NAME(change_at)(p->points, &by, (float *)p->direction.base + at, 0, count - at < CHUNK ? count - at : CHUNK, p->y + at, count);
    }
}

/* Rows ids[order[0 ... count - 1]], in ascending order, into y[p][order[i]]; w is not written. Signs are drawn once a chunk. */
TARGET static void NAME(gather)(const product *p, const int64_t *ids, const int64_t *order, int64_t count) {
    uint32_t bits[2][LANES * WORDS + 1];
    columns known[2] = {{-1, {0}}, {-1, {0}}};
    const job *tasks[2] = {&p->fold, &p->direction};
    const int64_t apart = count * p->depth;
    int64_t drawn = -1;
    bits[0][LANES * WORDS] = bits[1][LANES * WORDS] = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t first = ids[order[i]] * p->depth, last = first + p->depth;
        float *row = p->y + order[i] * p->depth;
        memcpy(row, (const float *)p->direction.base + first, (size_t)p->depth * 4);
        for (int64_t at = first; at < last; ) {
            const int64_t chunk = at / CHUNK * CHUNK, end = chunk + CHUNK < last ? chunk + CHUNK : last;
            float *part = row + (at - first);
            for (int t = p->folds ? 0 : 1; t < 2 && chunk != drawn; t++) NAME(direction_bits)(tasks[t], 0, chunk, &known[t], bits[t]);
            drawn = chunk;
            const NAME(change) taken = {bits[0], NULL, &p->step, 0.0f}, by = {bits[1], NULL, p->scales, 0.0f};
            if (p->folds) NAME(change_at)(1, &taken, part, at - chunk, end - at, part, 0);
            NAME(change_at)(p->points, &by, part, at - chunk, end - at, part, apart);
            at = end;
        }
    }
}

/* y[o][t] = or += sum_k w[o][k] x[k][t] for `outs` rows of w and `vectors` vectors of t, constants after inlining. */
TARGET static inline __attribute__((always_inline)) void NAME(tile)(
    const int outs, const int vectors, const float *w, const float *x, int64_t depth, int more, float *y, int64_t y_step,
    coming *ahead) {
    VF sums[ACROSS][2];
    UNROLL for (int o = 0; o < outs; o++)
        UNROLL for (int v = 0; v < vectors; v++) sums[o][v] = more ? NAME(load_f)(y + o * y_step + v * WIDE) : (VF){0};
    for (int64_t k = 0; k < depth; k += RUN) {
        bring(ahead);
        for (const float *end = w + (depth - k < RUN ? depth - k : RUN); w < end; w++, x += vectors * WIDE) {
            VF column[2];
            UNROLL for (int v = 0; v < vectors; v++) column[v] = NAME(load_f)(x + v * WIDE);
            UNROLL for (int o = 0; o < outs; o++) {
                const VF weight = SPLAT(w[o * STEP]);
                UNROLL for (int v = 0; v < vectors; v++) sums[o][v] = FMA(weight, column[v], sums[o][v]);
            }
        }
    }
    UNROLL for (int o = 0; o < outs; o++)
        UNROLL for (int v = 0; v < vectors; v++) NAME(store_f)(y + o * y_step + v * WIDE, sums[o][v]);
}

/* Functions of their own: the sums need every register, and compilers spill some where other things are alive. */
TARGET static __attribute__((noinline)) void NAME(tile_of_two)(const float *w, const float *x, int64_t depth, int more, float *y,
                                                               int64_t y_step, coming *ahead) {
    NAME(tile)(ACROSS / 2, 2, w, x, depth, more, y, y_step, ahead);
}
TARGET static __attribute__((noinline)) void NAME(tile_of_one)(const float *w, const float *x, int64_t depth, int more, float *y,
                                                               int64_t y_step, coming *ahead) {
    NAME(tile)(ACROSS, 1, w, x, depth, more, y, y_step, ahead);
}

/* A block of `outs` rows of w and `depth` columns, times all rows of one point's x; meanwhile memory brings `ahead`. */
TARGET static void NAME(block)(const product *p, const float *w, int64_t outs, const float *x, int64_t k, int64_t depth,
                               float *y, coming *ahead) {
    for (int64_t t = 0; t < p->padded; ) {
        const int two = p->padded - t >= 2 * WIDE;
        const float *from = x + t * p->depth + k * (two ? 2 * WIDE : WIDE);
        for (int64_t o = 0; o < outs; o += two ? ACROSS / 2 : ACROSS) {
            float *to = y + o * p->padded + t;
            if (two) NAME(tile_of_two)(w + o * STEP, from, depth, k > 0, to, p->padded, ahead);
            else NAME(tile_of_one)(w + o * STEP, from, depth, k > 0, to, p->padded, ahead);
        }
        t += two ? 2 * WIDE : WIDE;
    }
}

/* Draw the signs of chunks `first` ... `last` of the matrix; the chunk before, drawn for the panel before, is kept. */
TARGET static void NAME(panel_bits)(const job *task, int64_t first, int64_t last, int64_t *have, columns *known,
                                    uint32_t *bits) {
    for (int64_t chunk = first; chunk <= last; chunk++) {
        uint32_t *to = bits + (chunk - first) * (CHUNK / 32);
        if (chunk == have[1]) memmove(to, bits + (chunk - have[0]) * (CHUNK / 32), CHUNK / 8);
        else NAME(direction_bits)(task, 0, chunk * CHUNK, known, to);
    }
    have[0] = first; have[1] = last;
}

/* Weights of elements first ... last - 1, which are not stored but summed here; returns where element `first` is. The unit
 * that the panel before ended with is kept. */
TARGET static const float *NAME(panel_state)(const product *p, int64_t first, int64_t last, int64_t *have, float *state,
                                             int *status) {
    const int64_t all = p->outs * p->depth, unit = first / p->unit;
    int64_t start = unit * p->unit, stop = (last + p->unit - 1) / p->unit * p->unit;
    if (stop > all) stop = all;
    job part = p->state;
    part.out = state; part.out_dtype = FLOAT32;
    if (unit == have[1]) {
        const int64_t kept = start + p->unit < all ? p->unit : all - start;
        memmove(state, state + (unit - have[0]) * p->unit, (size_t)kept * sizeof(float));
        start += kept;
        part.out = state + kept;
    }
    part.start = start; part.count = stop - start;
    part.base = base_at(&p->state, start);
    if (part.count > 0) *status |= p->replay ? NAME(transform)(&part, 0, part.count) : NAME(sum)(&part, 0, part.count);
    have[0] = unit; have[1] = (last - 1) / p->unit;
    return state + (first - unit * p->unit);
}

/* Rows row ... row + outs - 1 of the matrix times x, into y^T of every point. */
TARGET static void NAME(panel)(const product *p, int64_t row, int64_t outs, const float *w, const NAME(change) *by, float *block,
                               float *across) {
    const int64_t tiles = p->padded / (2 * WIDE) * (2 * PANEL / ACROSS) + p->padded / WIDE % 2 * (PANEL / ACROSS);
    for (int64_t k = 0; k < p->depth; k += BLOCK_DEPTH) {
        const int64_t depth = p->depth - k < BLOCK_DEPTH ? p->depth - k : BLOCK_DEPTH, goes = tiles * ((depth + RUN - 1) / RUN);
        for (int64_t o = 0; o < outs; o++) {
            const int64_t at = o * p->depth + k;
            NAME(change_at)(p->points, by, (float *)w + at, row * p->depth % CHUNK + at, depth, block + o * STEP, PANEL * STEP);
        }
        for (int point = 0; point < p->points; point++) {
            coming ahead = come(p, w, k, depth, point, goes);
            NAME(block)(p, block + point * PANEL * STEP, outs, p->across + point * p->depth * p->padded, k, depth,
                        across + point * OUTS * p->padded, &ahead);
        }
    }
}

/* Outputs [first, last); `scratch` holds product_scratch(p) floats of this thread alone. */
TARGET static int NAME(multiply)(const product *p, int64_t first, int64_t last, float *scratch) {
    columns known = {-1, {0}}, known_before = {-1, {0}};
    int64_t have[2] = {-1, -1}, before[2] = {-1, -1}, formed[2] = {-1, -1};
    int status = 0;
    float *block = scratch, *across = block + p->points * PANEL * STEP, *state = across + p->points * OUTS * p->padded;
    uint32_t *bits = (uint32_t *)(state + product_state(p)), *bits_before = bits + product_bits(p);
    for (int64_t from = first; from < last && !status; from += OUTS) {
        const int64_t to = last - from < OUTS ? last : from + OUTS;
        for (int64_t row = from; row < to; row += PANEL) {
            const int64_t outs = to - row < PANEL ? to - row : PANEL, at = row * p->depth, end = at + outs * p->depth;
            NAME(panel_bits)(&p->direction, at / CHUNK, (end - 1) / CHUNK, have, &known, bits);
            const float *w = p->formed ? NAME(panel_state)(p, at, end, formed, state, &status) : (const float *)p->direction.base + at;
            if (p->folds) NAME(panel_bits)(&p->fold, at / CHUNK, (end - 1) / CHUNK, before, &known_before, bits_before);
            const NAME(change) by = {bits, p->folds ? bits_before : NULL, p->scales, p->step};
            NAME(panel)(p, row, outs, w, &by, block, across + (row - from) * p->padded);
        }
        for (int point = 0; point < p->points; point++) /* whole cache lines of y */
            NAME(transpose)(across + point * OUTS * p->padded, p->padded, to - from, p->rows, to - from,
                            p->y + point * p->rows * p->outs + from, p->outs);
    }
    return status;
}
