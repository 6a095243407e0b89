/* Directions at memory speed: the operations of edgetune/directions on raw pointers.
 *
 * C99 with the vector types of GCC and Clang, which any processor can run. The arithmetic lives in `lanes.h`, which this file includes once for every instruction set it can be
 * compiled for; the best one is chosen at run time. Results equal the torch reference bit for bit: every rounding is one
 * IEEE single-precision operation in a fixed order (compile with -ffp-contract=off).
 *
 * No function keeps state or allocates memory that outlives it. Threads split a tensor into ranges that start at whole
 * blocks and share nothing that is written.
 */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(_WIN32)
#define EDGETUNE_THREADS 1
#include <pthread.h>
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#include "job.h"

/* Column signs of LANES Hadamard blocks from `first`; -1 if none are known. */
typedef struct {
    int64_t first;
    uint32_t bits[LANES];
} columns;

/* One operation on a 16-bit tensor, the job's `out`, and the remainders of its rounding. */
typedef struct {
    job task;
    int16_t *remainder;
    int32_t joins;              /* start from out and remainder instead of from base */
} followed;

/* Lane numbers, and for each butterfly stage within a vector the sign of lanes that are subtracted. */
static const uint32_t lane_number[LANES] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#define MINUS 0x80000000u
static const uint32_t lane_signs[4][LANES] = {
    {0, MINUS, 0, MINUS, 0, MINUS, 0, MINUS, 0, MINUS, 0, MINUS, 0, MINUS, 0, MINUS},
    {0, 0, MINUS, MINUS, 0, 0, MINUS, MINUS, 0, 0, MINUS, MINUS, 0, 0, MINUS, MINUS},
    {0, 0, 0, 0, MINUS, MINUS, MINUS, MINUS, 0, 0, 0, 0, MINUS, MINUS, MINUS, MINUS},
    {0, 0, 0, 0, 0, 0, 0, 0, MINUS, MINUS, MINUS, MINUS, MINUS, MINUS, MINUS, MINUS},
};

/* Lanes of one vector, or of two, in another order; GCC before 12 has its own spelling. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(x, indices, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#define PAIR(x, y, indices, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define SHUFFLE(x, indices, ...) __builtin_shuffle(x, (indices){__VA_ARGS__})
#define PAIR(x, y, indices, ...) __builtin_shuffle(x, y, (indices){__VA_ARGS__})
#endif

#include "floats.h"

static void write_out(const job *task, int64_t first, int64_t count, const float *from) {
    switch (task->out_dtype) {
    case FLOAT32: memcpy((float *)task->out + first, from, (size_t)count * 4); break;
    case FLOAT16: for (int64_t i = 0; i < count; i++) ((uint16_t *)task->out)[first + i] = float_to_half(from[i]); break;
    default: for (int64_t i = 0; i < count; i++) ((uint16_t *)task->out)[first + i] = float_to_bfloat(from[i]); break;
    }
}

#define UNROLL _Pragma("GCC unroll 24")

/* Where element `first` of a base lies; `first` is a multiple of CHUNK. */
static const void *base_at(const job *task, int64_t first) {
    return (const uint8_t *)task->base + first / 32 * block_bytes[task->base_dtype];
}

#include "threads.h"

enum { BASELINE = 0, AVX2 = 1, AVX512 = 2 };
static const int lanes_of[] = {4, 8, 16};

/* The best instruction set of this machine. */
EXPORT int edgetune_best(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) return AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return BASELINE;
}

/* Whether the kernel may read and write what a job names: nothing here depends on an array's contents but seeds of a pool, whose
 * bits lie within a block. `fast` is a whole Hadamard pool, which has no seeds. */
static int reads_right(const job *task, int fast) {
    const int64_t unit = fast && task->padded > CHUNK ? task->padded : CHUNK;
    if (task->count < 0 || task->start < 0 || task->start > MOST || task->count > MOST - task->start || task->terms < 0) return 0;
    if (task->kind < RADEMACHER || task->kind > HADAMARD || task->base_dtype < FLOAT32 || task->base_dtype > Q4_1) return 0;
    if (task->kind == HADAMARD && (task->padded < 1 || task->padded > LARGEST_POOL || (task->padded & (task->padded - 1)))) return 0;
    if (task->start % unit || (task->kind == GAUSSIAN && !task->table)) return 0;
    if (task->count && !task->base) return 0;
    if (fast) return task->coefficients != NULL;
    if (task->terms && (!task->seeds || !task->coefficients)) return 0;
    for (int t = 0; task->kind == HADAMARD && t < task->terms; t++)
        if (task->seeds[t] >= task->padded) return 0;
    return 1;
}

#include "product_job.h"
#include "tiling.h"

#define NAME(x) x##_baseline
#define TARGET
#define WIDE 4
#define ACROSS 12
#define RUN 16
#if defined(__x86_64__)
#define STREAM(to, x) _mm_stream_ps(to, (__m128)(x))
#define FENCE _mm_sfence()
#else
#define STREAM(to, x) NAME(store_f)(to, x)
#define FENCE
#endif
#define SPLAT(x) ((vf_baseline){x, x, x, x})
#if defined(__aarch64__)
#define FMA(a, b, c) ((vf_baseline)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#include "turn.h"
#include "bases.h"
#include "lanes.h"
#include "remainder.h"
#include "product.h"
#include "tiles.h"
#include "rank_one.h"
#include "end.h"

#if defined(__x86_64__)
#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define WIDE 8
#define ACROSS 12
#define RUN 16
#define STREAM(to, x) _mm256_stream_ps(to, (__m256)(x))
#define SPLAT(x) ((vf_avx2)_mm256_set1_ps(x))
#define FMA(a, b, c) ((vf_avx2)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#include "turn.h"
#include "bases.h"
#include "lanes.h"
#include "remainder.h"
#include "product.h"
#include "tiles.h"
#include "rank_one.h"
#include "end.h"
#define NAME(x) x##_avx512
#if defined(__clang__) /* takes explicit vectors as they are */
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#else
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#endif
#define WIDE 16
#define ACROSS 24
#define RUN 1
#define STREAM(to, x) _mm512_stream_ps(to, (__m512)(x))
#define SPLAT(x) ((vf_avx512)_mm512_set1_ps(x))
#define FMA(a, b, c) ((vf_avx512)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#include "turn.h"
#include "bases.h"
#include "lanes.h"
#include "remainder.h"
#include "product.h"
#include "tiles.h"
#include "rank_one.h"
#include "end.h"
#endif

static int (*choose(int level, const job *task, int replay))(const job *, int64_t, int64_t) {
    int fast = replay && task->kind == HADAMARD;
#if defined(__x86_64__)
    if (level == AVX512) return fast ? transform_avx512 : sum_avx512;
    if (level == AVX2) return fast ? transform_avx2 : sum_avx2;
#endif
    (void)level;
    return fast ? transform_baseline : sum_baseline;
}

static void *enter(void *argument) {
    range *part = argument;
    part->status = part->work(part->task, part->first, part->last);
    return NULL;
}

/* Split [0, count) at multiples of `unit` and work on the parts in `threads` threads, this one included. */
static int spread(const job *task, int64_t unit, int threads, team together, int (*work)(const job *, int64_t, int64_t)) {
    int64_t units = (task->count + unit - 1) / unit;
    range parts[MAX_THREADS];
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > units) threads = (int)units;
    if (threads < 1) threads = 1;
    for (int t = 0; t < threads; t++) {
        int64_t first = units * t / threads * unit, last = units * (t + 1) / threads * unit;
        parts[t] = (range){task, first, last < task->count ? last : task->count, work, 0};
    }
    share_out(parts, sizeof(range), threads, enter, together);
    int status = 0;
    for (int t = 0; t < threads; t++) status |= parts[t].status;
    return status;
}

/* out = (base + coefficients[0] z(seeds[0])) + coefficients[1] z(seeds[1]) ..., in float32, rounded once.
 *
 * Returns 0, 1 if the arguments are not supported, 2 if there is no memory. `replay` selects the fast transform of a Hadamard pool, for which
 * `coefficients` has `padded` entries and `seeds` is not read.
 */
EXPORT int edgetune_run(const job *task, int replay, int level, int threads, team together) {
    if (!task || level > edgetune_best() || level < 0 || task->out_dtype < FLOAT32 || task->out_dtype > BFLOAT16) return 1;
    const int fast = replay && task->kind == HADAMARD;
    if (!reads_right(task, fast) || (task->count && !task->out)) return 1;
    const int64_t unit = fast && task->padded > CHUNK ? task->padded : CHUNK;
    return task->count ? spread(task, unit, threads, together, choose(level, task, replay)) : 0;
}

/* Add terms to a 16-bit tensor and its remainders, kind RADEMACHER or GAUSSIAN; returns as edgetune_run does. */
EXPORT int edgetune_follow(const followed *all, int level, int threads, team together) {
    if (!all || level > edgetune_best() || level < 0) return 1;
    const job *task = &all->task;
    if (!reads_right(task, 0) || task->kind > GAUSSIAN || task->base_dtype > BFLOAT16) return 1;
    if (task->out_dtype < FLOAT16 || task->out_dtype > BFLOAT16 || (task->count && (!task->out || !all->remainder))) return 1;
    if (all->joins && task->base != task->out) return 1;
    int (*work)(const job *, int64_t, int64_t) = follow_baseline;
#if defined(__x86_64__)
    if (level == AVX512) work = follow_avx512;
    if (level == AVX2) work = follow_avx2;
#endif
    return task->count ? spread(task, CHUNK, threads, together, work) : 0;
}

EXPORT int64_t edgetune_followed_size(void) { return (int64_t)sizeof(followed); }

EXPORT int64_t edgetune_job_size(void) { return (int64_t)sizeof(job); }

EXPORT int64_t edgetune_product_size(void) { return (int64_t)sizeof(product); }

/* y = x (w + scale z)^T for one or two scales, see product_job.h; returns as edgetune_run does. */
EXPORT int edgetune_product(product *p, int level, int threads, team together) {
    if (!product_fits(p, level) || !p->x || p->rows < 1 || p->rows > MOST / p->depth || p->rows > MOST / p->outs) return 1;
    if (p->formed && (p->state.start || p->state.count != p->direction.count || p->state.kind == GAUSSIAN ||
                      (p->replay && p->state.kind != HADAMARD) || !reads_right(&p->state, p->replay))) return 1;
    worker work = multiply_baseline;
    turner turn = turn_x_baseline;
#if defined(__x86_64__)
    if (level == AVX2) { work = multiply_avx2; turn = turn_x_avx2; }
    if (level == AVX512) { work = multiply_avx512; turn = turn_x_avx512; }
#endif
    product_shape(p, lanes_of[level]);
    threads = product_threads(p, threads);
    char *scratch = malloc((size_t)(product_shared(p) + threads * product_scratch(p)) * sizeof(float) + 4 * LINE);
    if (!scratch) return 2;
    p->scratch = (float *)(scratch + (4 * LINE - (uintptr_t)scratch % (4 * LINE)) % (4 * LINE)); /* whole cache lines */
    const int status = product_spread(p, threads, together, work, turn);
    free(scratch);
    return status;
}

/* y[p] = w + scales[p] z, [points, outs, depth], on the calling thread, no step before; returns as edgetune_run does. */
EXPORT int edgetune_points(product *p, int level) {
    if (!product_fits(p, level) || p->formed || p->folds) return 1;
    void (*work)(const product *) = points_baseline;
#if defined(__x86_64__)
    if (level == AVX2) work = points_avx2;
    if (level == AVX512) work = points_avx512;
#endif
    work(p);
    return 0;
}

/* y[p][i] = row ids[i] of w + scales[p] z, [points, count, depth]; `order` sorts ids. A step that folds is added, but not to w. */
EXPORT int edgetune_gather(product *p, const int64_t *ids, const int64_t *order, int64_t count, int level) {
    if (!product_fits(p, level) || p->formed || count < 0 || count > MOST / p->depth || (count && (!ids || !order))) return 1;
    for (int64_t i = 0; i < count; i++)
        if (order[i] < 0 || order[i] >= count || ids[i] < 0 || ids[i] >= p->outs) return 1;
    void (*work)(const product *, const int64_t *, const int64_t *, int64_t) = gather_baseline;
#if defined(__x86_64__)
    if (level == AVX2) work = gather_avx2;
    if (level == AVX512) work = gather_avx512;
#endif
    work(p, ids, order, count);
    return 0;
}

#include "calls.h"
