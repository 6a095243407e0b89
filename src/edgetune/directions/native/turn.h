/* Squares of lanes turned, compiled once for every instruction set (see kernel.c). The includer defines NAME, TARGET, WIDE. */

typedef uint32_t NAME(vu) __attribute__((vector_size(4 * WIDE)));
typedef float NAME(vf) __attribute__((vector_size(4 * WIDE)));
#define VU NAME(vu)
#define VF NAME(vf)

TARGET static inline VU NAME(load_u)(const void *from) { VU x; memcpy(&x, from, sizeof x); return x; }
TARGET static inline VF NAME(load_f)(const float *from) { VF x; memcpy(&x, from, sizeof x); return x; }
TARGET static inline void NAME(store_f)(float *to, VF x) { memcpy(to, &x, sizeof x); }

/* Rows i and i + span trade the lanes that have, or lack, the span's bit; all spans in turn exchange rows and columns. */
#define TRADE(span, low, high)                                    \
    UNROLL for (int i = 0; i < WIDE; i++) {                       \
        if (i & span) continue;                                   \
        const VF a = x[i], b = x[i + span];                       \
        x[i] = low;                                               \
        x[i + span] = high;                                       \
    }
/* to[j][i] = from[i][j] for a square of WIDE rows and columns */
TARGET static inline void NAME(turn)(const float *from, int64_t from_step, float *to, int64_t to_step) {
    VF x[WIDE];
    UNROLL for (int i = 0; i < WIDE; i++) x[i] = NAME(load_f)(from + i * from_step);
#if WIDE == 16
    TRADE(1, PAIR(a, b, VU, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30),
          PAIR(a, b, VU, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31))
    TRADE(2, PAIR(a, b, VU, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
          PAIR(a, b, VU, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31))
    TRADE(4, PAIR(a, b, VU, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27),
          PAIR(a, b, VU, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31))
    TRADE(8, PAIR(a, b, VU, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23),
          PAIR(a, b, VU, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31))
#elif WIDE == 8
    TRADE(1, PAIR(a, b, VU, 0, 8, 2, 10, 4, 12, 6, 14),
          PAIR(a, b, VU, 1, 9, 3, 11, 5, 13, 7, 15))
    TRADE(2, PAIR(a, b, VU, 0, 1, 8, 9, 4, 5, 12, 13),
          PAIR(a, b, VU, 2, 3, 10, 11, 6, 7, 14, 15))
    TRADE(4, PAIR(a, b, VU, 0, 1, 2, 3, 8, 9, 10, 11),
          PAIR(a, b, VU, 4, 5, 6, 7, 12, 13, 14, 15))
#else
    TRADE(1, PAIR(a, b, VU, 0, 4, 2, 6),
          PAIR(a, b, VU, 1, 5, 3, 7))
    TRADE(2, PAIR(a, b, VU, 0, 1, 4, 5),
          PAIR(a, b, VU, 2, 3, 6, 7))
#endif
    UNROLL for (int i = 0; i < WIDE; i++) NAME(store_f)(to + i * to_step, x[i]);
}
