/* Tiles summed and added along rows, compiled once for every instruction set (see tiling.h).
 *
 * Products with signs are exact and sums go from left to right: all sets and any number of threads give the same bits. The
 * includer defines NAME, TARGET, WIDE, SPLAT and FMA as for product.h.
 */

/* f[q] = sum over j = q, q + wide, ... of x[j] e[j], for TILE places q from `from` on; wide >= TILE. */
TARGET static void NAME(fold_tile)(const float *x, const float *e, int64_t columns, int64_t wide, float *f, int64_t from) {
    VF sums[TILE / WIDE];
    int64_t j = from;
    UNROLL for (int v = 0; v < TILE / WIDE; v++) sums[v] = (VF){0};
    for (; j + TILE <= columns; j += wide)
        UNROLL for (int v = 0; v < TILE / WIDE; v++)
            sums[v] = FMA(NAME(load_f)(x + j + v * WIDE), NAME(load_f)(e + j + v * WIDE), sums[v]);
    UNROLL for (int v = 0; v < TILE / WIDE; v++) NAME(store_f)(f + v * WIDE, sums[v]);
    for (int64_t i = j; i < columns; i++) f[i - j] += x[i] * e[i];
}

TARGET static int NAME(fold)(const void *task, int64_t first, int64_t last) {
    const tiling *t = task;
    float sums[TILE];
    for (int64_t row = first; row < last; row++) {
        const float *x = t->x + row * t->columns;
        float *f = t->tiles + row * t->wide;
        if (t->wide >= TILE) {
            for (int64_t q = 0; q < t->wide; q += TILE) NAME(fold_tile)(x, t->signs, t->columns, t->wide, f + q, q);
            continue;
        }
        NAME(fold_tile)(x, t->signs, t->columns, TILE, sums, 0);
        for (int64_t q = 0; q < t->wide; q++) f[q] = sums[q];
        for (int64_t q = t->wide; q < TILE; q++) f[q & (t->wide - 1)] += sums[q];
    }
    return 0;
}

/* Store a vector, around the cache if it `streams` and is aligned; a constant after inlining. */
TARGET static inline __attribute__((always_inline)) void NAME(put)(float *to, VF x, const int streams) {
    if (streams) STREAM(to, x);
    else NAME(store_f)(to, x);
}

/* out[j] = base[j] + sign e[j] g[(j + offset) mod wide] for a row, wide >= TILE, offset a multiple of it; `out` may be `base`. */
TARGET static inline __attribute__((always_inline)) void NAME(add_tiles_of)(
    const int streams, float *out, const float *base, const float *e, int64_t columns, const float *g, int64_t wide, int64_t offset,
    float sign) {
    for (int64_t q = 0; q < wide && q < columns; q += TILE) {
        const float *at = g + ((q + offset) & (wide - 1));
        VF tile[TILE / WIDE];
        int64_t j = q;
        UNROLL for (int v = 0; v < TILE / WIDE; v++) tile[v] = NAME(load_f)(at + v * WIDE) * SPLAT(sign);
        for (; j + TILE <= columns; j += wide)
            UNROLL for (int v = 0; v < TILE / WIDE; v++) {
                const int64_t i = j + v * WIDE;
                NAME(put)(out + i, FMA(tile[v], NAME(load_f)(e + i), NAME(load_f)(base + i)), streams);
            }
        for (int64_t i = j; i < columns && i < j + TILE; i++) out[i] = base[i] + e[i] * (sign * at[i - j]);
    }
}

TARGET static void NAME(add_tiles)(float *out, const float *base, const float *e, int64_t columns, const float *g, int64_t wide,
                                   int64_t offset, float sign) {
    NAME(add_tiles_of)(0, out, base, e, columns, g, wide, offset, sign);
}

TARGET static int NAME(unfold)(const void *task, int64_t first, int64_t last) {
    const tiling *t = task;
    float repeated[TILE];
    for (int64_t row = first; row < last; row++) {
        const float *g = t->tiles + row * t->wide;
        float *y = t->x + row * t->columns;
        if (t->wide < TILE)
            for (int64_t q = 0; q < TILE; q++) repeated[q] = g[q & (t->wide - 1)];
        if (t->wide < TILE) NAME(add_tiles)(y, y, t->signs, t->columns, repeated, TILE, 0, 1.0f);
        else NAME(add_tiles)(y, y, t->signs, t->columns, g, t->wide, 0, 1.0f);
    }
    return 0;
}

TARGET static int NAME(add_apart)(const void *told, int64_t first, int64_t last) {
    const apart *p = told;
    float sums[TILE];
    for (int64_t row = first; row < last; row++) {
        const int64_t record = row / p->each;
        NAME(fold_tile)(p->x + row * p->depth, p->v + record * p->depth, p->depth, TILE, sums, 0);
        for (int half = TILE / 2; half; half /= 2)
            for (int q = 0; q < half; q++) sums[q] += sums[q + half];
        const float a = p->scales[row] * sums[0];
        for (int q = 0; q < TILE; q++) sums[q] = a;
        float *y = p->y + row * p->outs;
        NAME(add_tiles)(y, y, p->u + record * p->outs, p->outs, sums, TILE, 0, 1.0f);
    }
    return 0;
}
