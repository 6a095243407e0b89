/* Walks the kernel over kinds, types, sizes and instruction sets; built with sanitizers by test_sanitisers.py. */

#include "../../src/edgetune/directions/native/kernel.c"
#include <stdio.h>

static float table[65536];

static void *exact(size_t bytes) { /* no slack: a byte too far is a report */
    void *block = malloc(bytes ? bytes : 1);
    if (!block) exit(3);
    memset(block, 0, bytes);
    return block;
}

/* Both points, a pending update, several threads: nothing outside the operands. */
static int64_t products(int level) {
    const int64_t shapes[][3] = {{1, 1, 1}, {3, 50, 37}, {16, 25, 8200}, {33, 97, 300}, {130, 49, 257}};
    int64_t done = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int threads = 1; threads <= 3; threads += 2)
            for (int kind = RADEMACHER; kind <= HADAMARD; kind += 2)
                for (int formed = 0; formed < 3; formed++) {
                    const int64_t rows = shapes[s][0], outs = shapes[s][1], depth = shapes[s][2];
                    const uint32_t padded = 16384;
                    float *w = exact((size_t)(outs * depth) * 4), *x = exact((size_t)(2 * rows * depth) * 4);
                    float *y = exact((size_t)(2 * rows * outs) * 4), *sum = exact(padded * sizeof(float));
                    uint64_t seed = 3;
                    sum[0] = 0.5f;
                    job direction = {NULL, w, outs * depth, FLOAT32, FLOAT32, kind, 1, {1, 2, 3}, 7, padded, &seed, sum, table, 0};
                    product p = {.direction = direction, .state = direction, .x = x, .y = y, .rows = rows, .outs = outs,
                                 .depth = depth, .seed = 5, .step_seed = 6, .scales = {0.5f, -0.5f}, .step = 0.25f,
                                 .points = 2, .formed = formed > 0, .replay = formed > 1 && kind == HADAMARD,
                                 .folds = formed == 0};
                    if (edgetune_product(&p, level, threads, NULL)) exit(4);
                    p.formed = 0;
                    const int64_t ids[] = {outs - 1, 0}, order[] = {1, 0};
                    p.y = exact((size_t)(4 * depth) * 4);
                    if (edgetune_gather(&p, ids, order, 2, level)) exit(5);
                    free(p.y);
                    p.y = exact((size_t)(2 * outs * depth) * 4);
                    p.folds = 0;
                    if (edgetune_points(&p, level)) exit(6);
                    free(p.y);
                    free(w); free(x); free(y); free(sum);
                    done++;
                }
    return done;
}

/* Steps of 16-bit weights, from a base of any type and from the weights themselves. */
static int64_t followed_steps(int level) {
    const int64_t sizes[] = {0, 1, 31, 8191, 8192, 8193, 40000};
    int64_t done = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int type = FLOAT16; type <= BFLOAT16; type++)
            for (int base_type = FLOAT32; base_type <= BFLOAT16; base_type++)
                for (int kind = RADEMACHER; kind <= GAUSSIAN; kind++) {
                    const size_t bytes = (size_t)sizes[s] * 2;
                    uint16_t *weight = exact(bytes);
                    int16_t *remainder = exact(bytes);
                    void *base = exact(base_type == FLOAT32 ? 2 * bytes : bytes);
                    uint64_t seeds[2] = {5, 6};
                    float coefficients[2] = {0.5f, 1e-7f};
                    followed all = {{weight, base, sizes[s], type, base_type, kind, 2, {1, 2, 3}, 7, 1, seeds, coefficients, table, 0},
                                    remainder, 0};
                    if (edgetune_follow(&all, level, 4, NULL)) exit(7);
                    all.task.base = weight;
                    all.task.base_dtype = type;
                    all.joins = 1;
                    if (edgetune_follow(&all, level, 4, NULL)) exit(8);
                    all.task.base = base;
                    if (!edgetune_follow(&all, level, 4, NULL)) exit(9);
                    done += 2;
                    free(weight); free(remainder); free(base);
                }
    return done;
}

/* Folds and unfolds of rows that are, and are not, whole tiles. */
static int64_t tilings(int level) {
    const int64_t sizes[] = {0, 1, 63, 64, 65, 700}, widths[] = {1, 16, 64, 128, 1024};
    int64_t done = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
            for (int spreads = 0; spreads < 2; spreads++) {
                const int64_t rows = 5, columns = sizes[s], wide = widths[w];
                float *x = exact((size_t)(rows * columns) * 4), *tiles = exact((size_t)(rows * wide) * 4);
                float *signs = exact((size_t)columns * 4);
                const tiling task = {x, tiles, signs, rows, columns, wide};
                if (edgetune_tile(&task, spreads, level, 3, NULL)) exit(10);
                const apart both = {x, tiles, tiles, signs, signs, rows, wide, columns, 5};
                if (columns >= rows && edgetune_apart(&both, level, 3, NULL)) exit(12);
                done++;
                free(x); free(tiles); free(signs);
            }
    return done;
}

/* Cores and terms of rank one, from bases of every type. */
static int64_t ranked_sums(int level) {
    const int64_t shapes[][2] = {{1, 1}, {3, 64}, {50, 33}, {97, 1100}, {513, 65}};
    const size_t widths[] = {4, 2, 2};
    uint64_t seeds[70] = {5};
    float coefficients[70] = {0.5f};
    int64_t done = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int out_type = FLOAT32; out_type <= BFLOAT16; out_type++)
            for (int base_type = FLOAT32; base_type <= BFLOAT16; base_type++)
                for (int terms = 0; terms <= 70; terms += 35) {
                    const int64_t rows = shapes[s][0], columns = shapes[s][1], count = rows * columns;
                    void *out = exact((size_t)count * widths[out_type]), *base = exact((size_t)count * widths[base_type]);
                    float *core = exact(32 * 128 * 4);
                    ranked sum = {{out, base, count, out_type, base_type, RADEMACHER, terms, {1, 2, 3}, 7, 1, seeds, coefficients, NULL, 0},
                                  terms ? NULL : core, columns, 32, 128, 0, 1, 3, 1, 1};
                    if (edgetune_rank_one(&sum, level, 3, NULL)) exit(11);
                    done++;
                    free(out); free(base); free(core);
                }
    return done;
}

static int64_t jobs(int level) {
    const int64_t sizes[] = {0, 1, 31, 33, 512, 8191, 8192, 8193, 40000};
    const uint32_t pools[] = {1, 2, 16, 32, 64, 4096, 16384};
    const size_t widths[] = {4, 2, 2};
    int64_t done = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int type = FLOAT32; type <= BFLOAT16; type++)
            for (int kind = RADEMACHER; kind <= HADAMARD; kind++)
                for (size_t p = 0; p < (kind == HADAMARD ? sizeof pools / sizeof *pools : 1); p++)
                    for (int replay = 0; replay <= (kind == HADAMARD); replay++) {
                        size_t bytes = (size_t)sizes[s] * widths[type];
                        void *out = exact(bytes), *base = exact(bytes);
                        float *coefficients = exact(pools[p] * sizeof(float) + 8);
                        uint64_t seeds[2] = {pools[p] - 1, 0};
                        coefficients[0] = 0.5f;
                        coefficients[1] = 0.25f;
                        job task = {out, base, sizes[s], type, type, kind, replay ? 1 : 2, {1, 2, 3}, 7, pools[p],
                                    seeds, coefficients, table, replay ? 0 : CHUNK * (int64_t)p};
                        if (edgetune_run(&task, replay, level, 4, NULL)) exit(1);
                        done++;
                        free(out);
                        free(base);
                        free(coefficients);
                    }
    return done;
}

/* One line a level of this processor: its number, and how many operations it did. */
int main(void) {
    for (int level = 0; level <= edgetune_best(); level++)
        printf("%d %lld\n", level, (long long)(products(level) + followed_steps(level) + tilings(level) + ranked_sums(level) + jobs(level)));
    return 0;
}
