/* The calls of tiling.h, included after all instruction sets. */

static int power_of_two(int64_t x) { return x > 0 && x <= LARGEST_POOL && !(x & (x - 1)); }

EXPORT int64_t edgetune_tiling_size(void) { return (int64_t)sizeof(tiling); }

/* tiles[r][q] = sum of x[r][j] signs[j] over j mod wide = q; or x[r][j] += signs[j] tiles[r][j mod wide] if it `spreads`.
 * Returns 0, or 1 if the arguments are not supported. */
EXPORT int edgetune_tile(const tiling *t, int spreads, int level, int threads, team together) {
    if (!t || level > edgetune_best() || level < 0 || t->rows < 0 || t->columns < 0 || !power_of_two(t->wide)) return 1;
    if ((t->columns && t->rows > MOST / t->columns) || t->rows > MOST / t->wide) return 1;
    if (t->rows && (!t->tiles || (t->columns && (!t->x || !t->signs)))) return 1;
    rower work = spreads ? unfold_baseline : fold_baseline;
#if defined(__x86_64__)
    if (level == AVX2) work = spreads ? unfold_avx2 : fold_avx2;
    if (level == AVX512) work = spreads ? unfold_avx512 : fold_avx512;
#endif
    return spread_rows(t, t->rows, threads, together, work);
}

EXPORT int64_t edgetune_ranked_size(void) { return (int64_t)sizeof(ranked); }

/* out = base + a sum of directions of rank one in float32, rounded once, see `ranked`; returns as edgetune_run does. */
EXPORT int edgetune_rank_one(const ranked *r, int level, int threads, team together) {
    if (!r || level > edgetune_best() || level < 0) return 1;
    const job *task = &r->task;
    if (!reads_right(task, 0) || task->kind != RADEMACHER || task->start || task->out_dtype < FLOAT32 || task->out_dtype > BFLOAT16) return 1;
    if (!task->count) return 0;
    if (!task->out || r->columns < 1 || task->count % r->columns) return 1;
    const int64_t rows = task->count / r->columns;
    if (task->base_dtype > BFLOAT16 && r->columns % 32 && rows > 1) return 1;
    if (r->core && (!power_of_two(r->tall) || !power_of_two(r->wide) || r->wide < TILE)) return 1;
    rower work = r->core ? add_core_baseline : add_rank_one_baseline;
#if defined(__x86_64__)
    if (level == AVX2) work = r->core ? add_core_avx2 : add_rank_one_avx2;
    if (level == AVX512) work = r->core ? add_core_avx512 : add_rank_one_avx512;
#endif
    return spread_rows(r, rows, threads, together, work);
}

EXPORT int64_t edgetune_apart_size(void) { return (int64_t)sizeof(apart); }

/* A direction a record, see `apart`; returns as edgetune_run does. */
EXPORT int edgetune_apart(const apart *p, int level, int threads, team together) {
    if (!p || level > edgetune_best() || level < 0 || p->rows < 0 || p->depth < 1 || p->outs < 1 || p->each < 1) return 1;
    if (p->rows % p->each || p->rows > MOST / p->depth || p->rows > MOST / p->outs) return 1;
    if (p->rows && (!p->y || !p->x || !p->v || !p->u || !p->scales)) return 1;
    rower work = add_apart_baseline;
#if defined(__x86_64__)
    if (level == AVX2) work = add_apart_avx2;
    if (level == AVX512) work = add_apart_avx512;
#endif
    return spread_rows(p, p->rows, threads, together, work);
}
