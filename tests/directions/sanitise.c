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

/* Both points, a pending update, several threads: nothing outside the operands and the scratch that was asked for. */
static int64_t products(void) {
    const int64_t shapes[][3] = {{1, 1, 1}, {3, 50, 37}, {16, 25, 8200}, {33, 97, 300}, {130, 49, 257}};
    int64_t done = 0;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int level = 0; level <= edgetune_best(); level++)
            for (int threads = 1; threads <= 3; threads += 2)
                for (int kind = RADEMACHER; kind <= HADAMARD; kind += 2)
                    for (int formed = 0; formed < 3; formed++) {
                        const int64_t rows = shapes[s][0], outs = shapes[s][1], depth = shapes[s][2];
                        const uint32_t padded = 16384;
                        float *w = exact((size_t)(outs * depth) * 4), *x = exact((size_t)(2 * rows * depth) * 4);
                        float *y = exact((size_t)(2 * rows * outs) * 4), *sum = exact(padded * sizeof(float));
                        uint64_t seed = 3;
                        sum[0] = 0.5f;
                        job direction = {w, w, outs * depth, FLOAT32, FLOAT32, kind, 1, {1, 2, 3}, 7, padded, &seed, sum, table, 0};
                        product p = {direction, direction, direction, x, y, rows, outs, depth, {0.5f, -0.5f}, 2, formed > 0,
                                     formed > 1 && kind == HADAMARD, formed == 0, 0, 0, NULL};
                        float *scratch = exact((size_t)edgetune_product_scratch(&p, level, threads) * 4);
                        if (edgetune_product(&p, scratch, level, threads, NULL)) exit(4);
                        done++;
                        const int64_t ids[] = {0, outs - 1};
                        float *got = exact((size_t)(2 * depth) * 4);
                        direction.out = got;
                        if (edgetune_gather(&direction, ids, 2, depth, level)) exit(5);
                        free(got);
                        free(w); free(x); free(y); free(sum); free(scratch);
                    }
    return done;
}

int main(void) {
    const int64_t sizes[] = {0, 1, 31, 33, 512, 8191, 8192, 8193, 40000};
    const uint32_t pools[] = {1, 2, 16, 32, 64, 4096, 16384};
    const size_t widths[] = {4, 2, 2};
    int64_t done = products();
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int type = FLOAT32; type <= BFLOAT16; type++)
            for (int kind = RADEMACHER; kind <= HADAMARD; kind++)
                for (size_t p = 0; p < (kind == HADAMARD ? sizeof pools / sizeof *pools : 1); p++)
                    for (int level = 0; level <= edgetune_best(); level++)
                        for (int replay = 0; replay <= (kind == HADAMARD); replay++) {
                            size_t bytes = (size_t)sizes[s] * widths[type];
                            void *out = exact(bytes), *base = exact(bytes);
                            float *coefficients = exact(pools[p] * sizeof(float) + 8);
                            uint64_t seeds[2] = {pools[p] - 1, 0};
                            coefficients[0] = 0.5f;
                            coefficients[1] = 0.25f;
                            job task = {out, base, sizes[s], type, type, kind, replay ? 1 : 2, {1, 2, 3}, 7, pools[p],
                                        seeds, coefficients, table, replay ? 0 : CHUNK * (int64_t)p};
                            if (edgetune_run(&task, replay, level, 4, NULL)) return 1;
                            done++;
                            free(out);
                            free(base);
                            free(coefficients);
                        }
    printf("%lld jobs\n", (long long)done);
    return 0;
}
