/* 16-bit weights and the remainders of their rounding (core/remainder.py), compiled once for every instruction set. */

typedef uint16_t NAME(vh) __attribute__((vector_size(2 * WIDE)));
#define WHOLE 12582912.0f /* adding it leaves whole numbers below 2^22, rounded to nearest even */

TARGET static inline VU NAME(select)(VU mask, VU yes, VU no) { return (yes & mask) | (no & ~mask); }

/* WIDE 16-bit numbers as float32, exact. */
TARGET static inline VF NAME(widened)(const uint16_t *from, int type) {
    NAME(vh) halves;
    memcpy(&halves, from, sizeof halves);
    const VU bits = __builtin_convertvector(halves, VU);
    if (type == BFLOAT16) return (VF)(bits << 16);
    const VU rest = bits & 0x7fffu, normal = (rest << 13) + 0x38000000u;
    const VF tiny = ((VF)(rest | 0x4b000000u) - 8388608.0f) * 5.9604644775390625e-8f; /* rest * 2^-24 */
    const VU value = NAME(select)((VU)(rest < 0x400u), (VU)tiny, NAME(select)((VU)(rest < 0x7c00u), normal, normal + 0x38000000u));
    return (VF)(value | (bits & 0x8000u) << 16);
}

/* x rounded to a 16-bit type, to nearest even; not its overflow to infinity. */
TARGET static inline VF NAME(shown)(VF x, int type) {
    const VU bits = (VU)x;
    if (type == BFLOAT16) return (VF)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
    const VU normal = (bits + 0xfffu + ((bits >> 13) & 1u)) & 0xffffe000u;
    const VU tiny = (VU)((x + 0.75f) - 0.75f) | (bits & 0x80000000u); /* a multiple of 2^-24, the last place of 0.75 */
    return (VF)NAME(select)((VU)((bits & 0x7fffffffu) < 0x38800000u), tiny, normal);
}

/* The bits of a number that `shown` returned. */
TARGET static inline VU NAME(narrowed)(VF weight, int type) {
    const VU bits = (VU)weight, rest = bits & 0x7fffffffu;
    if (type == BFLOAT16) return bits >> 16;
    const VU tiny = (VU)((VF)rest + 0.5f) - 0x3f000000u, normal = (rest - 0x38000000u) >> 13;
    const VU value = NAME(select)((VU)(rest < 0x38800000u), tiny, NAME(select)((VU)(rest < 0x47800000u), normal, (VU){0} + 0x7c00u));
    return value | ((bits >> 16) & 0x8000u);
}

/* 2^-15 of the last place of a rounded weight. */
TARGET static inline VU NAME(unit)(VF weight, int type) {
    const uint32_t least = type == BFLOAT16 ? (127u - 100u) << 23 : (127u - 14u) << 23;
    const VU exponent = (VU)weight & 0x7f800000u;
    return NAME(select)((VU)(exponent < least), (VU){0} + least, exponent) - (type == BFLOAT16 ? 22u << 23 : 25u << 23);
}

/* The remainder of a number beyond its weight, in units, plus WHOLE. */
TARGET static inline VF NAME(steps)(VF x, VF weight, VU unit) { return (x - weight) * (VF)((254u << 23) - unit) + WHOLE; }

/* x[i] = what a weight and its remainder hold of x[i] */
TARGET static void NAME(hold)(float *x, int type) {
    for (int i = 0; i < CHUNK; i += WIDE) {
        const VF value = NAME(load_f)(x + i), weight = NAME(shown)(value, type);
        const VU unit = NAME(unit)(weight, type);
        NAME(store_f)(x + i, weight + (NAME(steps)(value, weight, unit) - WHOLE) * (VF)unit);
    }
}

/* x[i] = weight[i] + remainder[i] units */
TARGET static void NAME(join)(float *x, const uint16_t *weight, const int16_t *remainder, int type) {
    for (int i = 0; i < CHUNK; i += WIDE) {
        NAME(vh) counted;
        memcpy(&counted, remainder + i, sizeof counted);
        const VU above = __builtin_convertvector(counted, VU) ^ 0x8000u; /* the remainder + 32768 */
        const VF wide = NAME(widened)(weight + i, type), left = (VF)(above | 0x4b000000u) - 8421376.0f;
        NAME(store_f)(x + i, wide + left * (VF)NAME(unit)(wide, type));
    }
}

TARGET static void NAME(part)(const float *x, uint16_t *weight, int16_t *remainder, int type) {
    for (int i = 0; i < CHUNK; i += WIDE) {
        const VF value = NAME(load_f)(x + i), rounded = NAME(shown)(value, type);
        const VU counted = (VU)NAME(steps)(value, rounded, NAME(unit)(rounded, type));
        const NAME(vh) halves = __builtin_convertvector(NAME(narrowed)(rounded, type), NAME(vh));
        const NAME(vh) left = __builtin_convertvector(counted & 0xffffu, NAME(vh));
        memcpy(weight + i, &halves, sizeof halves);
        memcpy(remainder + i, &left, sizeof left);
    }
}
#undef WHOLE

/* Elements [first, last): the weight and its remainder, or a base, and then the terms in their order, each sum held. */
TARGET static int NAME(follow)(const job *task, int64_t first, int64_t last) {
    const followed *all = (const followed *)task;
    const int type = task->out_dtype;
    columns known = {-1, {0}};
    float x[CHUNK] = {0};
    uint16_t last_weights[CHUNK] = {0};
    int16_t last_remainders[CHUNK] = {0};
    job one = *task;
    one.terms = 1;
    for (int64_t at = first; at < last; at += CHUNK) {
        const int whole = last - at >= CHUNK;
        const int64_t count = whole ? CHUNK : last - at;
        uint16_t *weight = (uint16_t *)task->out + at, *to = whole ? weight : last_weights;
        int16_t *remainder = all->remainder + at, *beside = whole ? remainder : last_remainders;
        if (!all->joins) {
            NAME(read_base)(task, at, count, x);
            NAME(hold)(x, type);
        } else {
            if (!whole) memcpy(to, weight, (size_t)count * 2);
            if (!whole) memcpy(beside, remainder, (size_t)count * 2);
            NAME(join)(x, to, beside, type);
        }
        for (int t = 0; t < task->terms; t++) {
            one.seeds = task->seeds + t;
            one.coefficients = task->coefficients + t;
            NAME(add_terms)(&one, at, &known, x);
            NAME(hold)(x, type);
        }
        NAME(part)(x, to, beside, type);
        if (!whole) memcpy(weight, to, (size_t)count * 2);
        if (!whole) memcpy(remainder, beside, (size_t)count * 2);
    }
    return 0;
}
