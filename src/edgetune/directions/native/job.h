/* What a call is told: one operation on one tensor, and the part of it that a thread does. */

enum { MAX_THREADS = 64, LANES = 16, WORDS = 16, BLOCK = 512, CHUNK = LANES * BLOCK, LARGEST_POOL = 1 << 20 };
static const int64_t MOST = (int64_t)1 << 37; /* elements of a tensor: 32 to a block of the key stream, whose counter has 32 bits */
enum dtype { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, Q8_0 = 3, Q4_0 = 4, Q4_1 = 5 };
/* Stored bytes of 32 elements, by type. */
static const int64_t block_bytes[] = {32 * 4, 32 * 2, 32 * 2, 34, 18, 20};
enum kind { RADEMACHER = 0, GAUSSIAN = 1, HADAMARD = 2 };

/* One operation on one tensor. `terms` directions are added: one for a perturbation, K for a replay. */
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
