/* The calls of tiling.h, included after all instruction sets. */

EXPORT int64_t edgetune_tiling_size(void) { return (int64_t)sizeof(tiling); }

/* tiles[r][q] = sum of x[r][j] signs[j] over j mod wide = q; or x[r][j] += signs[j] tiles[r][j mod wide] if it `spreads`.
 * Returns 0, or 1 if the arguments are not supported. */
EXPORT int edgetune_tile(const tiling *t, int spreads, int level, int threads, team together) {
    if (!t || level > edgetune_best() || level < 0 || t->rows < 0 || t->columns < 0 || t->wide < 1 || t->wide > LARGEST_POOL) return 1;
    if ((t->wide & (t->wide - 1)) || (t->columns && t->rows > MOST / t->columns) || t->rows > MOST / t->wide) return 1;
    if (t->rows && (!t->tiles || (t->columns && (!t->x || !t->signs)))) return 1;
    tiler work = spreads ? unfold_baseline : fold_baseline;
#if defined(__x86_64__)
    if (level == AVX2) work = spreads ? unfold_avx2 : fold_avx2;
    if (level == AVX512) work = spreads ? unfold_avx512 : fold_avx512;
#endif
    rows_of parts[MAX_THREADS];
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > t->rows) threads = (int)t->rows;
    if (threads < 1) threads = 1;
    for (int n = 0; n < threads; n++) parts[n] = (rows_of){t, t->rows * n / threads, t->rows * (n + 1) / threads, work};
    share_out(parts, sizeof(rows_of), threads, enter_rows, together);
    return 0;
}
