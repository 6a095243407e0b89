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

int main(void) {
    const int64_t sizes[] = {0, 1, 31, 33, 512, 8191, 8192, 8193, 40000};
    const uint32_t pools[] = {1, 2, 16, 32, 64, 4096, 16384};
    const size_t widths[] = {4, 2, 2};
    int64_t done = 0;
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
                            if (edgetune_run(&task, replay, level, 4)) return 1;
                            done++;
                            free(out);
                            free(base);
                            free(coefficients);
                        }
    printf("%lld jobs\n", (long long)done);
    return 0;
}
