/*
 * Design note.  A million rows are prepared with the GIL dropped.  Arrays and
 * descriptor lists go to the library as they are, rows held by an export and
 * runs by a reference; lists of tuples are converted in chunks, and the GIL is
 * dropped while each is taken in, so other threads run in between.  Signed
 * arrays go in chunks too: each is looked through for negative numbers while
 * it is in the cache.
 */
#include "python/agent/agent.h"

#include <string.h>

#include "python/agent/handles.h"
#include "python/arguments/convert.h"
#include "python/arguments/rows.h"
#include "python/arguments/scratch.h"
#include "python/descriptors/descs.h"

#define INIT_AGENT "NIXL_INIT_AGENT"

/* What every way of preparing needs. */
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
    vnxi_py_raise(prep->self->state, &prep->error);
    return false;
}

/* -- In pieces ------------------------------------------------------------ */

static bool
builder_begin(prep_t *prep)
{
    return vnx_dlist_begin(prep->self->agent, prep->peer.data, prep->peer.len,
                           prep->mem, prep->backends, &prep->builder,
                           &prep->error) >= 0 ||
           prep_raise(prep);
}

/* `good` is whether all rows were fed; otherwise an exception is set. */
static vnx_dlist_t *
builder_end(prep_t *prep, bool good)
{
    vnx_dlist_t *dlist = NULL;
    vnx_status_t status;
    if (!good) {
        vnx_dlist_abort(prep->builder);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_dlist_finish(prep->builder, &dlist, &prep->error);
    Py_END_ALLOW_THREADS;
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
    vnx_status_t status;
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_dlist_feed(prep->builder, rows, count, &prep->error);
    Py_END_ALLOW_THREADS;
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

/* Without the GIL.  *row_p is the first row with a negative number. */
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
    vnxi_py_invalid(prep->self->state, prep->operation, row,
                    "a number is negative");
    return false;
}

static vnx_dlist_t *
prep_signed(prep_t *prep, const vnxi_py_matrix_t *matrix)
{
    int64_t row = -1;
    vnx_status_t status;
    if (!builder_begin(prep)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = signed_feed(prep, matrix, &row);
    Py_END_ALLOW_THREADS;
    bool good = row >= 0     ? negative_raise(prep, row)
                : status < 0 ? prep_raise(prep)
                             : true;
    return builder_end(prep, good);
}

/* -- At once -------------------------------------------------------------- */

static vnx_dlist_t *
prep_plain(prep_t *prep, const vnx_desc_t *rows, size_t count)
{
    vnx_dlist_t *dlist = NULL;
    vnx_status_t status;
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_dlist_create(prep->self->agent, prep->peer.data,
                              prep->peer.len, prep->mem, rows, count,
                              prep->backends, &dlist, &prep->error);
    Py_END_ALLOW_THREADS;
    if (status < 0) {
        prep_raise(prep);
        return NULL;
    }
    return dlist;
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
        status = vnx_dlist_create_strided(
            prep->self->agent, prep->peer.data, prep->peer.len, prep->mem,
            (const vnx_strided_desc_t *)matrix->data, matrix->rows,
            prep->backends, &dlist, &prep->error);
    }
    Py_END_ALLOW_THREADS;
    if (row >= 0) {
        negative_raise(prep, row);
        return NULL;
    }
    if (status < 0) {
        prep_raise(prep);
        return NULL;
    }
    return dlist;
}

static vnx_dlist_t *
prep_matrix(prep_t *prep, PyObject *source)
{
    vnxi_py_matrix_t matrix;
    if (!vnxi_py_matrix_get(prep->self->state, prep->operation, source,
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

/* Again, row by row: where runs are refused, the caller is to learn which of
 * his rows it is, and how many runs there are is nothing he knows. */
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
    vnx_status_t status;
    vnxi_py_runs_retain(runs);
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_dlist_create_strided(
        prep->self->agent, prep->peer.data, prep->peer.len, prep->mem,
        runs->items, runs->count, prep->backends, &dlist, &prep->error);
    Py_END_ALLOW_THREADS;
    if (status < 0) {
        dlist = prep_unrolled(prep, runs);
    }
    vnxi_py_runs_release(runs);
    return dlist;
}

static vnx_dlist_t *
prep_contents(prep_t *prep, vnxi_py_descs_t *descs)
{
    if (descs->runs != NULL) {
        return prep_runs(prep, descs->runs);
    }
    if (!vnxi_py_descs_pin(descs)) {
        return NULL;
    }
    vnx_dlist_t *dlist = prep_plain(prep, descs->rows, descs->count);
    vnxi_py_descs_unpin(descs);
    return dlist;
}

/* Descriptor lists, and tensors, of which there are few. */
static vnx_dlist_t *
prep_descs(prep_t *prep, PyObject *source, PyObject *mem_type)
{
    vnxi_py_descs_t *descs =
        vnxi_py_descs_from(prep->self->state, prep->operation,
                           VNXI_PY_DESCS_XFER, source, mem_type);
    if (descs == NULL) {
        return NULL;
    }
    prep->mem = descs->mem;
    vnx_dlist_t *dlist = prep_contents(prep, descs);
    Py_DECREF(descs);
    return dlist;
}

static vnx_dlist_t *
prep_source(prep_t *prep, PyObject *source, PyObject *mem_type)
{
    const vnxi_py_state_t *state = prep->self->state;
    vnxi_py_source_t kind = vnxi_py_source_of(state, source);
    bool is_list = false;
    for (int i = VNXI_PY_DESCS_XFER; i <= VNXI_PY_DESCS_REMOTE; i++) {
        is_list = is_list || vnxi_py_descs_is(state, i, source);
    }
    if (kind == VNXI_PY_SOURCE_EXCEPTION) {
        return NULL;
    }
    if (is_list ||
        (kind != VNXI_PY_SOURCE_ROWS && kind != VNXI_PY_SOURCE_MATRIX)) {
        return prep_descs(prep, source, mem_type);
    }
    if (mem_type == NULL || mem_type == Py_None) {
        vnxi_py_invalid(prep->self->state, prep->operation, VNXI_PY_NO_ROW,
                        "mem_type is needed for tuples and arrays");
        return NULL;
    }
    if (!vnxi_py_mem_get(prep->operation, mem_type, &prep->mem)) {
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

static const vnxi_py_signature_t prep_signature = {
    .name = "prep_xfer_dlist",
    .count = 4,
    .required = 2,
    .params = {VNXI_PY_NAME_agent_name, VNXI_PY_NAME_xfer_list,
               VNXI_PY_NAME_mem_type, VNXI_PY_NAME_backends},
};

VNXI_PY_METHOD(prep_xfer_dlist)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[4];
    vnxi_py_backends_t backends;
    if (!vnxi_py_agent_begin(op, &prep_signature, args, nargs, kwnames,
                             values) ||
        !vnxi_py_backends_get(prep_signature.name, self->backends, values[3],
                              &backends)) {
        return NULL;
    }
    prep_t prep = {.self = self,
                   .operation = prep_signature.name,
                   .backends = backends.list};
    if (!side_get(&prep, values[0])) {
        return NULL;
    }
    vnx_dlist_t *dlist = prep_source(&prep, values[1], values[2]);
    vnxi_py_bytes_put(&prep.peer);
    return dlist != NULL ? vnxi_py_dlist_new(self, dlist) : NULL;
}

static const vnxi_py_signature_t release_signature = {
    .name = "release_dlist_handle",
    .count = 1,
    .required = 1,
    .params = {VNXI_PY_NAME_handle},
};

VNXI_PY_METHOD(release_dlist_handle)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    if (!vnxi_py_agent_begin(op, &release_signature, args, nargs, kwnames,
                             &value)) {
        return NULL;
    }
    if (!vnxi_py_is(self->state, VNXI_PY_TYPE_DLIST, value)) {
        return vnxi_py_wrong_type(release_signature.name, "handle",
                                  "a nixl_prepped_dlist_handle", value);
    }
    vnxi_py_dlist_release((vnxi_py_dlist_t *)value);
    Py_RETURN_NONE;
}
