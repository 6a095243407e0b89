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

enum { MAX_THREADS = 64, LANES = 16, WORDS = 16, BLOCK = 512, CHUNK = LANES * BLOCK };
enum dtype { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, Q8_0 = 3, Q4_0 = 4 };
enum kind { RADEMACHER = 0, GAUSSIAN = 1, HADAMARD = 2 };

/* One operation on one tensor. `terms` directions are summed: one for a perturbation, K for a replay. */
typedef struct {
    void *out;
    const void *base;
    int64_t count;
    int32_t out_dtype, base_dtype, kind, terms;
    uint32_t key[8];
    uint32_t tensor;
    uint32_t padded;            /* block length of a Hadamard pool, a power of two */
    const uint64_t *seeds;      /* [terms]; pool indices of a Hadamard perturbation */
    const float *coefficients;  /* [terms]; [padded] for a Hadamard replay */
    const float *table;         /* [65536] normal quantiles, for GAUSSIAN */
    int64_t start;              /* element of the whole tensor that out[0] is; a multiple of CHUNK, and of padded for a replay */
} job;

typedef struct {
    const job *task;
    int64_t first, last;
    int (*work)(const job *, int64_t, int64_t);
    int status;
} range;

/* Column signs of LANES Hadamard blocks from `first`; -1 if none are known. */
typedef struct {
    int64_t first;
    uint32_t bits[LANES];
} columns;

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

static inline float float_of(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t bits_of(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }

static inline float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu;
    if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x400u) return float_of(sign | ((rest << 13) + 0x38000000u));
    float tiny = (float)rest * 5.9604644775390625e-8f; /* subnormal: rest * 2^-24, exact */
    return float_of(sign | bits_of(tiny));
}

static inline uint16_t float_to_half(float x) {
    uint32_t bits = bits_of(x), sign = (bits >> 16) & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to infinity */
    if (rest < 0x38800000u) { /* subnormal: adding 0.5 aligns the bits, the FPU rounds to nearest even */
        float aligned = float_of(rest) + 0.5f;
        return (uint16_t)(sign | (bits_of(aligned) - 0x3f000000u));
    }
    rest += 0xfffu + ((rest >> 13) & 1u);
    return (uint16_t)(sign | ((rest - 0x38000000u) >> 13));
}

static inline float bfloat_to_float(uint16_t b) { return float_of((uint32_t)b << 16); }

static inline uint16_t float_to_bfloat(float x) {
    uint32_t bits = bits_of(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((bits >> 16) | 0x40u);
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

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
    static const int64_t block_bytes[] = {32 * 4, 32 * 2, 32 * 2, 34, 18};
    return (const uint8_t *)task->base + first / 32 * block_bytes[task->base_dtype];
}

/* GOMP_parallel of the OpenMP runtime that the process uses already, or NULL for threads of our own. Idle threads of that
 * runtime spin, and a thread of our own would share a core with one. */
typedef void (*team)(void (*)(void *), void *, unsigned, unsigned);

typedef struct {
    char *parts;
    size_t size;
    int count, next;
    void *(*enter)(void *);
} crew;

/* Take parts until there are none; any number of threads may be in here. */
static void take_parts(void *argument) {
    crew *work = argument;
    for (int i; (i = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->count; ) work->enter(work->parts + (size_t)i * work->size);
}

/* Work on `count` parts of `size` bytes in as many threads, this one included. */
static void share_out(void *parts, size_t size, int count, void *(*enter)(void *), team together) {
    crew work = {parts, size, count, 0, enter};
    if (together && count > 1) {
        together(take_parts, &work, (unsigned)count, 0);
        return;
    }
#if EDGETUNE_THREADS
    pthread_t running[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    for (int t = 1; t < count; t++) started[t] = !pthread_create(&running[t], NULL, enter, work.parts + (size_t)t * size);
    enter(work.parts);
    for (int t = 1; t < count; t++) {
        if (started[t]) pthread_join(running[t], NULL);
        else enter(work.parts + (size_t)t * size);
    }
#else
    take_parts(&work);
#endif
}

#include "product_job.h"

#define NAME(x) x##_baseline
#define TARGET
#define WIDE 4
#define ACROSS 12
#define RUN 16
#define SPLAT(x) ((vf_baseline){x, x, x, x})
#if defined(__aarch64__)
#define FMA(a, b, c) ((vf_baseline)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b)))
#else
#define FMA(a, b, c) ((a) * (b) + (c))
#endif
#include "turn.h"
#include "bases.h"
#include "lanes.h"
#include "product.h"
#include "end.h"

#if defined(__x86_64__)
#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define WIDE 8
#define ACROSS 12
#define RUN 16
#define SPLAT(x) ((vf_avx2)_mm256_set1_ps(x))
#define FMA(a, b, c) ((vf_avx2)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c)))
#include "turn.h"
#include "bases.h"
#include "lanes.h"
#include "product.h"
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
#define SPLAT(x) ((vf_avx512)_mm512_set1_ps(x))
#define FMA(a, b, c) ((vf_avx512)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#include "turn.h"
#include "bases.h"
#include "lanes.h"
#include "product.h"
#include "end.h"
#endif

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

/* out = base + sum_t coefficients[t] z(seeds[t]), rounded once.
 *
 * Returns 0, 1 if the arguments are not supported, 2 if there is no memory. `replay` selects the fast transform of a Hadamard pool, for which
 * `coefficients` has `padded` entries and `seeds` is not read.
 */
EXPORT int edgetune_run(const job *task, int replay, int level, int threads, team together) {
    if (task->count < 0 || task->out_dtype < FLOAT32 || task->out_dtype > BFLOAT16 || task->base_dtype > Q4_0 ||
        task->kind < RADEMACHER || task->kind > HADAMARD || level > edgetune_best() || level < 0) return 1;
    if (task->kind == HADAMARD && (task->padded < 1 || (task->padded & (task->padded - 1)))) return 1;
    const int64_t unit = replay && task->kind == HADAMARD && task->padded > CHUNK ? task->padded : CHUNK;
    if (task->start < 0 || task->start % unit) return 1;
    return task->count ? spread(task, unit, threads, together, choose(level, task, replay)) : 0;
}

EXPORT int64_t edgetune_job_size(void) { return (int64_t)sizeof(job); }

EXPORT int64_t edgetune_product_size(void) { return (int64_t)sizeof(product); }

/* Floats of scratch that a product needs with so many threads. */
EXPORT int64_t edgetune_product_scratch(product *p, int level, int threads) {
    product_shape(p, lanes_of[level]);
    return product_shared(p) + (int64_t)product_threads(p, threads) * product_scratch(p);
}

/* y = x (w + scale z)^T for one or two scales, see product_job.h; returns as edgetune_run does. */
EXPORT int edgetune_product(product *p, float *scratch, int level, int threads, team together) {
    if (p->rows < 1 || p->outs < 1 || p->depth < 1 || p->points < 1 || p->points > 2 || level > edgetune_best() || level < 0 ||
        p->direction.start || p->direction.kind == GAUSSIAN || p->direction.kind > HADAMARD || p->direction.terms != 1) return 1;
    if (!p->formed && p->direction.base_dtype != FLOAT32) return 1;
    if (p->folds && (p->formed || p->fold.kind == GAUSSIAN || p->fold.terms != 1 || p->fold.start)) return 1;
    product_shape(p, lanes_of[level]);
    worker work = multiply_baseline;
    turner turn = turn_x_baseline;
#if defined(__x86_64__)
    if (level == AVX2) { work = multiply_avx2; turn = turn_x_avx2; }
    if (level == AVX512) { work = multiply_avx512; turn = turn_x_avx512; }
#endif
    return product_spread(p, scratch, product_threads(p, threads), together, work, turn);
}

/* out[r] = rows[r] of a float32 matrix of `width` columns, plus the terms one after the other; returns as edgetune_run does. */
EXPORT int edgetune_gather(const job *task, const int64_t *rows, int64_t count, int64_t width, int level) {
    if (task->kind == GAUSSIAN || task->out_dtype != FLOAT32 || task->base_dtype != FLOAT32 || task->start ||
        level > edgetune_best() || level < 0) return 1;
    void (*work)(const job *, const int64_t *, int64_t, int64_t) = gather_baseline;
#if defined(__x86_64__)
    if (level == AVX2) work = gather_avx2;
    if (level == AVX512) work = gather_avx512;
#endif
    work(task, rows, count, width);
    return 0;
}
