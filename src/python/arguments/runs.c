/*
 * Design note.  The first two rows of a run predict the following ones; the
 * run is extended as long as they match.  A run never descends and never
 * passes 2^64, as the library requires of a strided row.  So its last address
 * is its highest, and one look at that address tells whether any address is
 * negative in a signed array.  Irregular rows are given up early: when there
 * are more runs than the rows so far justify.
 *
 * Another thread may write to the array meanwhile.  Then the runs may contain
 * neither the old nor the new rows, as copied rows may, but nothing is read or
 * written out of bounds.
 */
#include "python/arguments/runs.h"

#include <string.h>

/* Fewer rows take so little memory that they are kept as they are. */
#define RUNS_ROWS_MIN 256u
#define RUNS_FIRST 64u
/* This many irregular runs may precede a regular rest. */
#define RUNS_AHEAD 1024u

static size_t
runs_size(size_t count)
{
    return sizeof(vnxi_py_runs_t) + count * sizeof(vnx_strided_desc_t);
}

/* Do this many runs take at most an eighth of the memory of the rows? */
static bool
runs_worth(size_t count, size_t rows)
{
    return count <= rows / 8 * sizeof(vnx_desc_t) / sizeof(vnx_strided_desc_t);
}

static inline bool
row_is(const vnx_desc_t *row, const vnx_strided_desc_t *run, uint64_t addr)
{
    return row->addr == addr && row->len == run->len && row->dev == run->dev;
}

/* The same test for four rows at once. */
static inline bool
rows_are(const vnx_desc_t *rows, const vnx_strided_desc_t *run, uint64_t addr)
{
    uint64_t differ = 0;
    for (unsigned i = 0; i < 4; i++) {
        differ |= (rows[i].addr ^ (addr + i * run->stride)) |
                  (rows[i].len ^ run->len) | (rows[i].dev ^ run->dev);
    }
    return differ == 0;
}

/* Return the run that begins at the first of `left` rows. */
static vnx_strided_desc_t
run_at(const vnx_desc_t *rows, size_t left)
{
    vnx_strided_desc_t run = {.addr = rows[0].addr,
                              .len = rows[0].len,
                              .dev = rows[0].dev,
                              .count = 1};
    if (left < 2 || rows[1].addr < run.addr || rows[1].len != run.len ||
        rows[1].dev != run.dev) {
        return run;
    }
    run.stride = rows[1].addr - run.addr;
    if (run.stride > 0 && left - 1 > (UINT64_MAX - run.addr) / run.stride) {
        left = (UINT64_MAX - run.addr) / run.stride + 1;
    }
    size_t n = 1;
    uint64_t addr = run.addr + run.stride;
    for (; n + 4 <= left && rows_are(rows + n, &run, addr); n += 4) {
        addr += 4 * run.stride;
    }
    for (; n < left && row_is(rows + n, &run, addr); n++) {
        addr += run.stride;
    }
    run.count = n;
    return run;
}

static bool
run_is_negative(const vnx_strided_desc_t *run)
{
    uint64_t last = run->addr + (run->count - 1) * run->stride;
    return (last | run->len | run->dev) > INT64_MAX;
}

/* Make room for one more run; false: the runs are not worth it. */
static bool
runs_reserve(vnxi_py_runs_t **runs_p, size_t *capacity, size_t rows)
{
    vnxi_py_runs_t *runs = *runs_p;
    size_t count = runs != NULL ? runs->count : 0;
    if (count < *capacity) {
        return true;
    }
    if (runs != NULL && (!runs_worth(count, rows) ||
                         (count > RUNS_AHEAD &&
                          !runs_worth(count - RUNS_AHEAD, runs->rows)))) {
        return false;
    }
    size_t doubled = *capacity > 0 ? *capacity * 2 : RUNS_FIRST;
    vnxi_py_runs_t *grown = PyMem_RawRealloc(runs, runs_size(doubled));
    if (grown == NULL) {
        return false;
    }
    if (runs == NULL) {
        *grown = (vnxi_py_runs_t){.refs = 1};
    }
    *runs_p = grown;
    *capacity = doubled;
    return true;
}

/* Find the runs, without the GIL. */
static vnxi_py_runs_t *
runs_of(const vnx_desc_t *rows, size_t count, bool is_signed)
{
    vnxi_py_runs_t *runs = NULL;
    size_t capacity = 0;
    bool good = true;
    for (size_t at = 0; good && at < count;) {
        vnx_strided_desc_t run = run_at(rows + at, count - at);
        good = !(is_signed && run_is_negative(&run)) &&
               runs_reserve(&runs, &capacity, count);
        if (good) {
            runs->items[runs->count++] = run;
            at = runs->rows += run.count;
        }
    }
    if (!good || !runs_worth(runs->count, count)) {
        PyMem_RawFree(runs);
        return NULL;
    }
    vnxi_py_runs_t *fitted = PyMem_RawRealloc(runs, runs_size(runs->count));
    return fitted != NULL ? fitted : runs;
}

vnxi_py_runs_t *
vnxi_py_runs_read(const vnxi_py_matrix_t *matrix)
{
    const vnx_desc_t *rows = (const vnx_desc_t *)matrix->data;
    if (matrix->rows < RUNS_ROWS_MIN) {
        return NULL;
    }
    PyThreadState *thread =
        vnxi_py_gil_drop_if(matrix->rows >= VNXI_PY_ROWS_LARGE);
    vnxi_py_runs_t *runs = runs_of(rows, matrix->rows, matrix->is_signed);
    vnxi_py_gil_take(thread);
    return runs;
}

vnxi_py_runs_t *
vnxi_py_runs_new(const vnx_strided_desc_t *items, size_t count)
{
    vnxi_py_runs_t *runs = PyMem_RawMalloc(runs_size(count));
    if (runs == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    *runs = (vnxi_py_runs_t){.refs = 1, .count = count};
    memcpy(runs->items, items, count * sizeof *items);
    for (size_t i = 0; i < count; i++) {
        runs->rows += items[i].count;
    }
    return runs;
}

void
vnxi_py_runs_release(vnxi_py_runs_t *runs)
{
    if (runs != NULL && --runs->refs == 0) {
        PyMem_RawFree(runs);
    }
}

bool
vnxi_py_runs_equal(const vnxi_py_runs_t *a, const vnxi_py_runs_t *b)
{
    return a == b ||
           (a->count == b->count &&
            memcmp(a->items, b->items, a->count * sizeof *a->items) == 0);
}

static void
run_unroll(const vnx_strided_desc_t *run, uint64_t first, vnx_desc_t *rows,
           size_t count)
{
    uint64_t addr = run->addr + first * run->stride;
    for (size_t i = 0; i < count; i++) {
        rows[i] = (vnx_desc_t){addr, run->len, run->dev};
        addr += run->stride;
    }
}

size_t
vnxi_py_runs_unroll(const vnxi_py_runs_t *runs, vnxi_py_runs_at_t *at,
                    vnx_desc_t *rows, size_t max)
{
    size_t done = 0;
    while (done < max && at->run < runs->count) {
        const vnx_strided_desc_t *run = &runs->items[at->run];
        uint64_t left = run->count - at->piece;
        size_t count = left < max - done ? left : max - done;
        run_unroll(run, at->piece, rows + done, count);
        done += count;
        at->piece += count;
        if (at->piece == run->count) {
            *at = (vnxi_py_runs_at_t){.run = at->run + 1};
        }
    }
    return done;
}
