/*
 * Design note.  The library prepares a million rows with the GIL dropped.
 * Arrays and descriptor lists are passed to it without a copy: an export keeps
 * the rows in place, a reference keeps the runs.  Lists of tuples are
 * converted in chunks.  The GIL is dropped while the library takes a chunk, so
 * other threads run in between.  Signed arrays are passed in chunks too: each
 * is checked for negative numbers while it is in the cache.
 */
#include "python/agent/agent.h"

#include <string.h>

#include "python/agent/handles.h"
#include "python/arguments/convert.h"
#include "python/arguments/rows.h"
#include "python/arguments/scratch.h"
#include "python/descriptors/descs.h"

#define INIT_AGENT "NIXL_INIT_AGENT"

/* The state of one call, for every kind of source. */
typedef struct prep {
    vnxi_py_agent_t *self;
    const char *operation;
    vnxi_py_bytes_t peer; /* empty: the local side */
    vnx_mem_t mem;
    const char *const *backends;
    vnx_dlist_builder_t *builder;
    vnx_error_t error;
} prep_t;

static bool
prep_raise(prep_t *prep)
{
    return vnxi_py_raise(prep->self->state, &prep->error);
}

/* The first list waits while another thread creates a backend. */
static bool
builder_begin(prep_t *prep)
{
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(vnx_dlist_begin(
        prep->self->agent, prep->peer.data, prep->peer.len, prep->mem,
        prep->backends, &prep->builder, &prep->error));
    return status >= 0 || prep_raise(prep);
}

/* Finish the builder.  `good`: all rows were fed; otherwise an exception is
 * set. */
static vnx_dlist_t *
builder_end(prep_t *prep, bool good)
{
    vnx_dlist_t *dlist = NULL;
    if (!good) {
        vnx_dlist_abort(prep->builder);
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        vnx_dlist_finish(prep->builder, &dlist, &prep->error));
    if (status < 0) {
        vnx_dlist_abort(prep->builder);
        prep_raise(prep);
        return NULL;
    }
    return dlist;
}

static bool
chunk_feed(void *context, const vnx_desc_t *rows, size_t count)
{
    prep_t *prep = context;
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        vnx_dlist_feed(prep->builder, rows, count, &prep->error));
    return status >= 0 || prep_raise(prep);
}

static vnx_dlist_t *
prep_rows(prep_t *prep, PyObject *list)
{
    if (!builder_begin(prep)) {
        return NULL;
    }
    bool good = vnxi_py_rows_read(prep->self->state, prep->operation, list,
                                  chunk_feed, prep);
    return builder_end(prep, good);
}

/* Feed signed rows, without the GIL.  *row_p is the first row with a negative
 * number. */
static vnx_status_t
signed_feed(prep_t *prep, const vnxi_py_matrix_t *matrix, int64_t *row_p)
{
    const uint64_t *data = matrix->data;
    for (size_t at = 0; at < matrix->rows; at += VNXI_PY_ROWS_CHUNK) {
        size_t left = matrix->rows - at;
        size_t count = left < VNXI_PY_ROWS_CHUNK ? left : VNXI_PY_ROWS_CHUNK;
        int64_t row = vnxi_py_matrix_negative(data + at * 3, count, 3);
        if (row >= 0) {
            *row_p = (int64_t)at + row;
            return VNX_OK;
        }
        vnx_status_t status =
            vnx_dlist_feed(prep->builder, (const vnx_desc_t *)(data + at * 3),
                           count, &prep->error);
        if (status < 0) {
            return status;
        }
    }
    return VNX_OK;
}

static bool
negative_raise(prep_t *prep, int64_t row)
{
    return vnxi_py_invalid(prep->self->state, prep->operation, row,
                           "a number is negative");
}

static vnx_dlist_t *
prep_signed(prep_t *prep, const vnxi_py_matrix_t *matrix)
{
    int64_t row = -1;
    if (!builder_begin(prep)) {
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(signed_feed(prep, matrix, &row));
    bool good = row >= 0     ? negative_raise(prep, row)
                : status < 0 ? prep_raise(prep)
                             : true;
    return builder_end(prep, good);
}

static vnx_dlist_t *
prep_plain(prep_t *prep, const vnx_desc_t *rows, size_t count)
{
    vnx_dlist_t *dlist = NULL;
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(vnx_dlist_create(
        prep->self->agent, prep->peer.data, prep->peer.len, prep->mem, rows,
        count, prep->backends, &dlist, &prep->error));
    if (status < 0) {
        prep_raise(prep);
    }
    return dlist;
}

/* Create a list from strided rows, without the GIL. */
static vnx_status_t
strided_create(prep_t *prep, const vnx_strided_desc_t *rows, size_t count,
               vnx_dlist_t **dlist_p)
{
    return vnx_dlist_create_strided(prep->self->agent, prep->peer.data,
                                    prep->peer.len, prep->mem, rows, count,
                                    prep->backends, dlist_p, &prep->error);
}

static vnx_dlist_t *
prep_strided(prep_t *prep, const vnxi_py_matrix_t *matrix)
{
    vnx_dlist_t *dlist = NULL;
    vnx_status_t status = VNX_OK;
    int64_t row = -1;
    Py_BEGIN_ALLOW_THREADS;
    if (matrix->is_signed) {
        row = vnxi_py_matrix_negative(matrix->data, matrix->rows, 5);
    }
    if (row < 0) {
        status = strided_create(prep, (const vnx_strided_desc_t *)matrix->data,
                                matrix->rows, &dlist);
    }
    Py_END_ALLOW_THREADS;
    if (row >= 0) {
        negative_raise(prep, row);
    } else if (status < 0) {
        prep_raise(prep);
    }
    return dlist;
}

static vnx_dlist_t *
prep_matrix(prep_t *prep, PyObject *source)
{
    vnxi_py_matrix_t matrix;
    if (!vnxi_py_matrix_get(prep->self->state, prep->operation, source, NULL,
                            &matrix)) {
        return NULL;
    }
    vnx_dlist_t *dlist =
        matrix.columns == 5 ? prep_strided(prep, &matrix)
        : matrix.is_signed
            ? prep_signed(prep, &matrix)
            : prep_plain(prep, (const vnx_desc_t *)matrix.data, matrix.rows);
    vnxi_py_matrix_put(&matrix);
    return dlist;
}

/* Try again row by row, after the library refused the runs.  The error then
 * names the caller's row instead of a run, which the caller does not know. */
static vnx_dlist_t *
prep_unrolled(prep_t *prep, const vnxi_py_runs_t *runs)
{
    vnxi_py_state_t *state = prep->self->state;
    vnxi_py_scratch_t scratch;
    vnxi_py_runs_at_t at = {0};
    bool good = true;
    if (!vnxi_py_scratch_take(state, VNXI_PY_ROWS_CHUNK * sizeof(vnx_desc_t),
                              &scratch)) {
        return NULL;
    }
    if (!builder_begin(prep)) {
        vnxi_py_scratch_put(state, &scratch);
        return NULL;
    }
    while (good && at.run < runs->count) {
        size_t count =
            vnxi_py_runs_unroll(runs, &at, scratch.data, VNXI_PY_ROWS_CHUNK);
        good = chunk_feed(prep, scratch.data, count);
    }
    vnxi_py_scratch_put(state, &scratch);
    return builder_end(prep, good);
}

static vnx_dlist_t *
prep_runs(prep_t *prep, vnxi_py_runs_t *runs)
{
    vnx_dlist_t *dlist = NULL;
    vnxi_py_runs_retain(runs);
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        strided_create(prep, runs->items, runs->count, &dlist));
    if (status < 0) {
        dlist = prep_unrolled(prep, runs);
    }
    vnxi_py_runs_release(runs);
    return dlist;
}

/* Prepare from a descriptor list or from tensors, of which there are few. */
static vnx_dlist_t *
prep_descs(prep_t *prep, PyObject *source, PyObject *mem_type)
{
    vnx_dlist_t *dlist = NULL;
    vnxi_py_descs_t *descs =
        vnxi_py_descs_from(prep->self->state, prep->operation,
                           VNXI_PY_DESCS_XFER, source, mem_type);
    if (descs == NULL) {
        return NULL;
    }
    prep->mem = descs->mem;
    if (descs->runs != NULL) {
        dlist = prep_runs(prep, descs->runs);
    } else if (vnxi_py_descs_pin(descs)) {
        dlist = prep_plain(prep, descs->rows, descs->count);
        vnxi_py_descs_unpin(descs);
    }
    Py_DECREF(descs);
    return dlist;
}

static vnx_dlist_t *
prep_source(prep_t *prep, PyObject *source, PyObject *mem_type)
{
    vnxi_py_state_t *state = prep->self->state;
    vnxi_py_source_t kind = vnxi_py_source_of(state, source);
    if (kind == VNXI_PY_SOURCE_EXCEPTION) {
        return NULL;
    }
    if (vnxi_py_descs_is_any(state, source) ||
        (kind != VNXI_PY_SOURCE_ROWS && kind != VNXI_PY_SOURCE_MATRIX)) {
        return prep_descs(prep, source, mem_type);
    }
    if (!vnxi_py_mem_needed(prep->operation, mem_type, &prep->mem)) {
        return NULL;
    }
    return kind == VNXI_PY_SOURCE_ROWS ? prep_rows(prep, source)
                                       : prep_matrix(prep, source);
}

static bool
side_get(prep_t *prep, PyObject *agent_name)
{
    if (!vnxi_py_name_get(prep->operation, agent_name, &prep->peer)) {
        return false;
    }
    if (prep->peer.len == sizeof INIT_AGENT - 1 &&
        memcmp(prep->peer.data, INIT_AGENT, prep->peer.len) == 0) {
        prep->peer.len = 0;
    }
    return true;
}

VNXI_PY_AGENT_METHOD(
    prep_xfer_dlist,
    (REQUIRED(agent_name), REQUIRED(xfer_list), OPTIONAL(mem_type, "None"),
     OPTIONAL(backends, "[]")),
    "Check descriptors once, for use by index. Returns a\n"
    "nixl_prepped_dlist_handle.\n\n"
    "agent_name: '' or 'NIXL_INIT_AGENT' for the local side, otherwise\n"
    "    the peer (str or bytes); with the agent's own name, the agent\n"
    "    is its own remote side\n"
    "xfer_list: as for get_xfer_descs(), or a C-contiguous Nx5 array of\n"
    "    uint64 or int64: address, length, device id, stride, count.\n"
    "    Such a row stands for `count` blocks of `length` bytes,\n"
    "    `stride` bytes apart; indices count the blocks\n"
    "mem_type: as for get_reg_descs()\n"
    "backends: names of backends; empty: all\n\n"
    "Other threads run meanwhile; do not change the array.\n"
    "nixlNotFoundError and nixlInvalidParamError name the first row that\n"
    "is not in a registered region.")
{
    vnxi_py_backends_t backends;
    if (!vnxi_py_backends_get(operation, self->backends, args->backends,
                              &backends)) {
        return NULL;
    }
    prep_t prep = {
        .self = self, .operation = operation, .backends = backends.list};
    if (!side_get(&prep, args->agent_name)) {
        return NULL;
    }
    vnx_dlist_t *dlist = prep_source(&prep, args->xfer_list, args->mem_type);
    vnxi_py_bytes_put(&prep.peer);
    return dlist != NULL ? vnxi_py_dlist_new(self, dlist) : NULL;
}

VNXI_PY_AGENT_METHOD(
    release_dlist_handle, (REQUIRED(handle)),
    "Free a prepared list; calling it again does nothing. Transfers\n"
    "created from it continue.")
{
    if (!vnxi_py_is(self->state, VNXI_PY_TYPE_DLIST, args->handle)) {
        return vnxi_py_wrong_type(operation, "handle",
                                  "a nixl_prepped_dlist_handle", args->handle);
    }
    vnxi_py_dlist_release((vnxi_py_dlist_t *)args->handle);
    Py_RETURN_NONE;
}
