/* Parts of a job, shared out among threads. */

/* GOMP_parallel of the OpenMP runtime that the process uses already, or NULL for threads of our own. Idle threads of that
 * runtime spin, and a thread of our own would share a core with one. */
typedef void (*team)(void (*)(void *), void *, unsigned, unsigned);

typedef struct {
    char *parts;
    size_t size;
    int count, next;
    void *(*enter)(void *);
} crew;

/* Take parts until there are none; any number of threads may be in here. */
static void take_parts(void *argument) {
    crew *work = argument;
    for (int i; (i = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED)) < work->count; ) work->enter(work->parts + (size_t)i * work->size);
}

/* Work on `count` parts of `size` bytes in as many threads, this one included. */
static void share_out(void *parts, size_t size, int count, void *(*enter)(void *), team together) {
    crew work = {parts, size, count, 0, enter};
    if (together && count > 1) {
        together(take_parts, &work, (unsigned)count, 0);
        return;
    }
#if EDGETUNE_THREADS
    pthread_t running[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    for (int t = 1; t < count; t++) started[t] = !pthread_create(&running[t], NULL, enter, work.parts + (size_t)t * size);
    enter(work.parts);
    for (int t = 1; t < count; t++) {
        if (started[t]) pthread_join(running[t], NULL);
        else enter(work.parts + (size_t)t * size);
    }
#else
    take_parts(&work);
#endif
}
