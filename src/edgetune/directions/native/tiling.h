/* One pass over rows whose columns repeat a tile: column j belongs to place j mod `wide`. */

/* TILE columns are worked on at a time; a narrower tile is one of that many columns, repeated. */
enum { TILE = 64 };

typedef struct {
    float *x;               /* [rows, columns]; read by a fold, written by an unfold */
    float *tiles;           /* [rows, wide]; written by a fold, read by an unfold */
    const float *signs;     /* [columns] */
    int64_t rows, columns, wide;  /* wide: a power of two */
} tiling;

typedef void (*tiler)(const tiling *, int64_t, int64_t);

/* Rows first ... last - 1. */
typedef struct {
    const tiling *task;
    int64_t first, last;
    tiler work;
} rows_of;

static void *enter_rows(void *argument) {
    rows_of *part = argument;
    part->work(part->task, part->first, part->last);
    return NULL;
}
