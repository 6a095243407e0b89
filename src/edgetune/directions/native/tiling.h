/* Matrices whose columns repeat a tile, and sums of rank one: what the calls are told, and rows shared out among threads. */

/* TILE columns are worked on at a time; a narrower tile is one of that many columns, repeated. */
enum { TILE = 64 };
/* Terms of rank one are added so many at a time to so many rows. */
enum { GROUP = 64, ROWS = 2 * PANEL };

/* One pass over rows whose column j belongs to place j mod `wide`. */
typedef struct {
    float *x;               /* [rows, columns]; read by a fold, written by an unfold */
    float *tiles;           /* [rows, wide]; written by a fold, read by an unfold */
    const float *signs;     /* [columns] */
    int64_t rows, columns, wide;  /* wide: a power of two */
} tiling;

/* y[r] += s[r] (x[r] . v) u, v and u those of the record of row r: one of each for `each` rows. */
typedef struct {
    float *y;               /* [rows, outs] */
    const float *x;         /* [rows, depth] */
    const float *v, *u;     /* [rows / each, depth], [rows / each, outs] */
    const float *scales;    /* [rows] */
    int64_t rows, depth, outs, each;
} apart;

/* out = base + D tile(core) E, or base and then the job's terms of rank one in their order if there is no core. */
typedef struct {
    job task;
    const float *core;      /* [tall, wide]; both powers of two, wide >= TILE */
    int64_t columns, tall, wide;
    uint64_t row_seed, column_seed;  /* streams of D and E */
    int64_t column_block;   /* where E begins in its stream, in blocks of it; for terms, where v does */
    int32_t signed_rows;    /* whether there is D */
    int32_t streams;        /* write around the cache */
} ranked;

typedef int (*rower)(const void *, int64_t, int64_t);

/* Rows first ... last - 1. */
typedef struct {
    const void *task;
    int64_t first, last;
    rower work;
    int status;
} rows_of;

static void *enter_rows(void *argument) {
    rows_of *part = argument;
    part->status = part->work(part->task, part->first, part->last);
    return NULL;
}

/* Work on `rows` rows in as many threads, this one included. */
static int spread_rows(const void *task, int64_t rows, int threads, team together, rower work) {
    rows_of parts[MAX_THREADS];
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads > rows) threads = (int)rows;
    if (threads < 1) threads = 1;
    for (int t = 0; t < threads; t++) parts[t] = (rows_of){task, rows * t / threads, rows * (t + 1) / threads, work, 0};
    share_out(parts, sizeof(rows_of), threads, enter_rows, together);
    int status = 0;
    for (int t = 0; t < threads; t++) status |= parts[t].status;
    return status;
}
