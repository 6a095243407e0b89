/* Stored weights as float32, compiled once for every instruction set (see kernel.c). The includer defines NAME and TARGET. */

/* One block of 32 packed weights; the loops are vectors of the set that this file is compiled for. */
TARGET static inline void NAME(unpack)(int32_t type, const uint8_t *block, float *to) {
    uint16_t half;
    memcpy(&half, block, 2);
    const float scale = half_to_float(half);
    if (type == Q8_0) {
        for (int i = 0; i < 32; i++) to[i] = scale * (float)(int8_t)block[2 + i];
        return;
    }
    if (type == Q4_1) { /* the product of a half and four bits is exact, so that nothing depends on a fused addition */
        memcpy(&half, block + 2, 2);
        const float least = half_to_float(half);
        for (int i = 0; i < 16; i++) {
            to[i] = scale * (float)(int32_t)(block[4 + i] & 15) + least;
            to[i + 16] = scale * (float)(int32_t)(block[4 + i] >> 4) + least;
        }
        return;
    }
    for (int i = 0; i < 16; i++) {
        to[i] = scale * (float)((int32_t)(block[2 + i] & 15) - 8);
        to[i + 16] = scale * (float)((int32_t)(block[2 + i] >> 4) - 8);
    }
}

/* Read `count` elements from `first`, a multiple of 32 if they are packed, as float32. */
TARGET static void NAME(read_base)(const job *task, int64_t first, int64_t count, float *to) {
    const uint16_t *halves = (const uint16_t *)task->base + first;
    float rest[32];
    switch (task->base_dtype) {
    case FLOAT32: memcpy(to, (const float *)task->base + first, (size_t)count * 4); break;
    case FLOAT16: for (int64_t i = 0; i < count; i++) to[i] = half_to_float(halves[i]); break;
    case BFLOAT16: for (int64_t i = 0; i < count; i++) to[i] = bfloat_to_float(halves[i]); break;
    default:
        for (int64_t i = 0; i < count; i += 32) {
            const uint8_t *block = (const uint8_t *)task->base + (first + i) / 32 * block_bytes[task->base_dtype];
            if (i + 32 <= count) { NAME(unpack)(task->base_dtype, block, to + i); continue; }
            NAME(unpack)(task->base_dtype, block, rest);
            memcpy(to + i, rest, (size_t)(count - i) * 4);
        }
    }
}
