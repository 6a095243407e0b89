/* One reading of a perturbed matrix: its arguments, its scratch and its threads.
 *
 *     y[p] = x[p] (w + scales[p] z)^T,   w = base + sum_k a_k z_k if `formed`, else base
 *
 * One or two points p: the two halves of a step read the matrix once. Without x it is the matrix itself, or rows of it.
 */

typedef struct {
    job direction;      /* base is w [outs, depth], float32, unless `formed`; its terms are not read */
    job state;          /* what forms w where it is not stored; out is not read */
    const float *x;     /* [points, rows, depth] */
    float *y;           /* [points, rows, outs] */
    int64_t rows, outs, depth;
    uint64_t seed, step_seed;
    float scales[2], step;
    int32_t points, formed, replay;
    int32_t folds;      /* w <- w + step z(step_seed) first, for good; base is written */
    /* set here: */
    job fold;
    int64_t padded;     /* rows, up to whole vectors */
    int64_t unit;       /* elements that must be formed together */
    float *scratch;
    float *across;      /* x transposed, two vectors of rows after another: [points][padded / 2 vectors][depth][2 vectors] */
} product;

/* PANEL x BLOCK_DEPTH weights are perturbed at a time; STEP, their row length, is no power of two, which would crowd one set
 * of the cache. */
enum { PANEL = 24, OUTS = 2 * PANEL, BLOCK_DEPTH = 256, STEP = BLOCK_DEPTH + LANES, SHARE = 2 * LANES, LINE = 16 };

static void product_shape(product *p, int wide) {
    p->padded = (p->rows + wide - 1) / wide * wide;
    p->unit = p->formed && p->replay && p->state.padded > CHUNK ? p->state.padded : CHUNK;
}

/* Lines of the matrix that the cache will want next, brought a few at a time while others are multiplied. */
typedef struct {
    const float *row;          /* the present one */
    int64_t step;              /* floats from row to row */
    int across, column, left;  /* lines of a row, brought of this one, and to bring in all */
    int each;                  /* lines at a time */
} coming;

static inline void bring(coming *ahead) {
    for (int i = 0; i < ahead->each && ahead->left > 0; i++, ahead->left--) {
        __builtin_prefetch(ahead->row + ahead->column * LINE, 0, 2);
        if (++ahead->column == ahead->across) ahead->column = 0, ahead->row += ahead->step;
    }
}

/* The block after columns k ... k + depth - 1, half of its rows at each of two points, in as many goes as there will be. */
static coming come(const product *p, const float *w, int64_t k, int64_t depth, int point, int64_t goes) {
    const int rows = PANEL / p->points, across = (int)((depth + LINE - 1) / LINE), lines = rows * across;
    const float *from = w + point * rows * p->depth + (k + depth < p->depth ? k + depth : PANEL * p->depth);
    const int inside = !p->formed && from + rows * p->depth <= (const float *)p->direction.base + p->outs * p->depth;
    return (coming){from, p->depth, across, 0, inside ? lines : 0, (int)((lines + goes - 1) / goes)};
}

static int product_threads(const product *p, int threads) {
    const int64_t panels = (p->outs + OUTS - 1) / OUTS;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > panels) threads = (int)panels;
    return threads < 1 ? 1 : threads;
}

static int64_t product_state(const product *p) { return p->formed ? PANEL * p->depth + 2 * p->unit : 0; }

/* Words of sign bits of a panel, which may start and end within a chunk, and one that is read beyond it. */
static int64_t product_bits(const product *p) { return (PANEL * p->depth / CHUNK + 2) * (CHUNK / 32) + LANES; }

/* Floats every thread has to itself: a block of weights a point, y^T, weights of a panel if they are not stored, signs twice. */
static int64_t product_scratch(const product *p) {
    return p->points * (PANEL * STEP + OUTS * p->padded) + product_state(p) + 2 * product_bits(p);
}

/* Whether sizes and pointers of an operation on w make sense; sets what follows from the arguments. */
static int product_fits(product *p, int level) {
    if (!p || level < 0 || level > edgetune_best() || p->outs < 1 || p->depth < 1 || p->depth > MOST / p->outs) return 0;
    if (p->points < 1 || p->points > 2 || !p->y || (p->folds && p->formed)) return 0;
    p->direction.seeds = &p->seed; p->direction.coefficients = p->scales; p->direction.terms = 1;
    p->fold = p->direction;
    p->fold.seeds = &p->step_seed;
    if (p->direction.count != p->outs * p->depth || p->direction.start || p->direction.kind == GAUSSIAN) return 0;
    if (!p->formed && p->direction.base_dtype != FLOAT32) return 0;
    return reads_right(&p->direction, 0) && (!p->folds || reads_right(&p->fold, 0));
}

static int64_t product_shared(const product *p) { return p->points * p->depth * p->padded; }

typedef int (*worker)(const product *, int64_t, int64_t, float *);
typedef void (*turner)(const product *, int64_t, int64_t);

/* A range of work: of outputs if there is a worker, else of groups of x to turn. */
typedef struct {
    const product *task;
    int64_t first, last;
    float *scratch;
    worker work;
    turner turn;
    int status;
} stripe;

static void *enter_stripe(void *argument) {
    stripe *part = argument;
    if (part->work) part->status = part->work(part->task, part->first, part->last, part->scratch);
    else part->turn(part->task, part->first, part->last);
    return NULL;
}

/* Turn x, then share the panels out among threads, this one included; what they write is disjoint. */
static int product_spread(product *p, int threads, team together, worker work, turner turn) {
    const int64_t panels = (p->outs + OUTS - 1) / OUTS, groups = p->points * ((p->padded + SHARE - 1) / SHARE);
    stripe parts[MAX_THREADS];
    float *scratch = p->scratch + product_shared(p);
    p->across = p->scratch;
    for (int t = 0; t < threads; t++)
        parts[t] = (stripe){p, groups * t / threads, groups * (t + 1) / threads, NULL, NULL, turn, 0};
    share_out(parts, sizeof(stripe), threads, enter_stripe, together);
    for (int t = 0; t < threads; t++) {
        const int64_t first = panels * t / threads * OUTS, last = panels * (t + 1) / threads * OUTS;
        parts[t] = (stripe){p, first, last < p->outs ? last : p->outs, scratch + t * product_scratch(p), work, turn, 0};
    }
    share_out(parts, sizeof(stripe), threads, enter_stripe, together);
    int status = 0;
    for (int t = 0; t < threads; t++) status |= parts[t].status;
    return status;
}
