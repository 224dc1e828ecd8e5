/*
 * Long transfers of scattered rows, made by index into the library's own
 * prepared lists.
 *
 * Design notes.  A piece costs 70 ns in the library, an index into a prepared
 * list only 30 ns if the list is regular: the library stores runs of rows and
 * searches them for each row.  For a list in random order it would store one
 * run per row, which takes seconds.  So a prepared list gets a counterpart
 * (twin) in the library when the first long transfer of scattered rows is made
 * from it, unless its rows are irregular or too many for this to pay off.  The
 * twin lives as long as the list, or until the engine stops.
 *
 * If this method does not apply or fails, the transfer is made from pieces,
 * which also report the error.
 */
#include <stdlib.h>

#include "base/recycle.h"
#include "engine/nixl/xfer.h"
#include "engine/parts/indices.h"
#include "engine/parts/list_block.h"

#define ROWS_MIN 4096u /* of a transfer; the library counts them in an int */
#define ROWS_MAX (1u << 30)
#define LIST_TIMES_MAX 16u /* rows of a list per row of the transfer */
#define RUNS_MAX 2048u     /* limit for a regular list */
#define BATCH 512u

struct vnxi_nixl_twin {
    vnxi_engine_t *engine;
    nixl_capi_xfer_dlist_handle_t handle; /* NULL: the list is irregular, or
                                  the engine has stopped; protected by the gate
                                  and twins_lock */
    size_t backend;
    vnxi_nixl_twin_t *next, *previous; /* twins_lock */
};

/* -- The library's list ----------------------------------------------------
 */

static void
drop_handle(vnxi_nixl_twin_t *twin)
{
    vnxi_engine_t *engine = twin->engine;

    if (twin->handle != NULL) {
        engine->capi->release_xfer_dlist_handle(engine->agent, twin->handle);
        twin->handle = NULL;
    }
}

static vnxi_nixl_twin_t *
twin_of(const vnxi_list_t *list)
{
    return atomic_load(&((const vnxi_nixl_list_t *)list)->twin);
}

static void
list_fini(vnxi_list_t *list)
{
    vnxi_nixl_twin_t *twin = twin_of(list);
    if (twin == NULL) {
        return;
    }
    vnxi_engine_t *engine = twin->engine;
    vnxi_rwlock_read(&engine->gate);
    vnxi_mutex_lock(&engine->twins_lock);
    if (twin->previous != NULL) {
        twin->previous->next = twin->next;
    } else {
        engine->twins = twin->next;
    }
    if (twin->next != NULL) {
        twin->next->previous = twin->previous;
    }
    vnxi_mutex_unlock(&engine->twins_lock);
    drop_handle(twin);
    vnxi_rwlock_unlock(&engine->gate);
    free(twin);
}

const vnxi_list_class_t vnxi_nixl_list_class = {
    .size = sizeof(vnxi_nixl_list_t),
    .fini = list_fini,
};

void
vnxi_nixl_twins_drop(vnxi_engine_t *engine)
{
    vnxi_mutex_lock(&engine->twins_lock);
    for (vnxi_nixl_twin_t *twin = engine->twins; twin != NULL;
         twin = twin->next) {
        drop_handle(twin);
    }
    vnxi_mutex_unlock(&engine->twins_lock);
}

/* Copy all rows of the list.  False: they are not regular. */
static bool
copy_rows(const vnxi_list_t *list, const vnxi_capi_t *capi,
          nixl_capi_xfer_dlist_t out)
{
    vnx_desc_t last = {0};
    uint64_t step = 0;
    size_t runs = 0;

    for (size_t i = 0; i < list->count; i++) {
        vnx_desc_t row = vnxi_list_row(list, i);
        if (row.addr - last.addr != step || row.dev != last.dev) {
            step = row.addr - last.addr;
            runs++;
        }
        last = row;
        if (runs > RUNS_MAX ||
            capi->xfer_dlist_add_desc(out, row.addr, row.len, row.dev) !=
                NIXL_CAPI_SUCCESS) {
            return false;
        }
    }
    return true;
}

/* Requires the gate. */
static nixl_capi_xfer_dlist_handle_t
prepare(vnxi_engine_t *engine, const vnxi_list_t *list, size_t backend)
{
    nixl_capi_xfer_dlist_t rows = vnxi_nixl_list_take(engine, list->mem);
    nixl_capi_xfer_dlist_handle_t handle = NULL;

    if (rows == NULL) {
        return NULL;
    }
    if (!copy_rows(list, engine->capi, rows) ||
        engine->capi->prep_xfer_dlist(
            engine->agent, list->peer != NULL ? list->peer->name : "", rows,
            &handle, engine->backends[backend].options) != NIXL_CAPI_SUCCESS) {
        handle = NULL;
    }
    vnxi_nixl_list_give(engine, list->mem, rows, list->count);
    return handle;
}

static void
make_twin(vnxi_engine_t *engine, vnxi_list_t *list, size_t backend)
{
    vnxi_nixl_twin_t *twin = calloc(1, sizeof *twin);

    if (twin == NULL) {
        return;
    }
    twin->engine = engine;
    twin->backend = backend;
    twin->handle = prepare(engine, list, backend);
    vnxi_mutex_lock(&engine->twins_lock);
    twin->next = engine->twins;
    if (twin->next != NULL) {
        twin->next->previous = twin;
    }
    engine->twins = twin;
    vnxi_mutex_unlock(&engine->twins_lock);
    atomic_store(&((vnxi_nixl_list_t *)list)->twin, twin);
}

/* Create the list's twin if it has none.  Returns whether the list now has one
 * of that backend. */
static bool
need_twin(vnxi_engine_t *engine, const vnxi_list_t *list, size_t backend)
{
    if (twin_of(list) == NULL &&
        vnxi_mutex_trylock(&engine->making_lock) == 0) {
        if (twin_of(list) == NULL) {
            make_twin(engine, (vnxi_list_t *)list, backend);
        }
        vnxi_mutex_unlock(&engine->making_lock);
    }
    const vnxi_nixl_twin_t *twin = twin_of(list);
    return twin != NULL && twin->handle != NULL && twin->backend == backend;
}

/* -- Indices ---------------------------------------------------------------
 */

/* Convert the indices to the library's type.  False: an index is out of range.
 */
static bool
read_indices(const vnx_indices_t *indices, size_t list_count, int *out)
{
    uint64_t scratch[BATCH];

    for (size_t at = 0; at < indices->count; at += BATCH) {
        size_t left = indices->count - at;
        size_t count = left < BATCH ? left : BATCH;
        const uint64_t *from = vnxi_indices_read(indices, at, count, scratch);
        if (!vnxi_indices_are_below(from, count, list_count)) {
            return false;
        }
        for (size_t i = 0; i < count; i++) {
            out[at + i] = (int)from[i];
        }
    }
    return true;
}

static bool
follows(const vnxi_list_t *list, int before, int index)
{
    vnx_desc_t a = vnxi_list_row(list, (size_t)before);
    vnx_desc_t b = vnxi_list_row(list, (size_t)index);
    return a.addr + a.len == b.addr && a.dev == b.dev;
}

/* The number of pieces that the library will make of them: it merges
 * neighbours that are contiguous on both sides. */
static size_t
count_pieces(const vnxi_xfer_args_t *args, const int *local, const int *remote)
{
    size_t pieces = 1;

    for (size_t i = 1; i < args->local_rows.count; i++) {
        bool is_merged = local[i] == local[i - 1] + 1 &&
                         remote[i] == remote[i - 1] + 1 &&
                         follows(args->local, local[i - 1], local[i]) &&
                         follows(args->remote, remote[i - 1], remote[i]);
        pieces += !is_merged;
    }
    return pieces;
}

/* -- The request -----------------------------------------------------------
 */

static bool
is_memory(vnx_mem_t mem)
{
    return mem == VNX_MEM_DRAM || mem == VNX_MEM_VRAM;
}

static bool
is_regular(const vnxi_list_t *list)
{
    const vnxi_nixl_twin_t *twin = twin_of(list);
    return list->uniform && is_memory(list->mem) &&
           (twin == NULL || twin->handle != NULL);
}

/* Return whether all rows of both sides have one length, and the lists are
 * short enough for the twins to pay off. */
static bool
is_worth_it(const vnxi_xfer_args_t *args)
{
    const vnxi_list_t *local = args->local, *remote = args->remote;
    size_t count = args->local_rows.count, most = count * LIST_TIMES_MAX;

    return count >= ROWS_MIN && count <= ROWS_MAX &&
           count == args->remote_rows.count && !args->no_merge &&
           is_regular(local) && is_regular(remote) &&
           local->row_len == remote->row_len && local->count <= most &&
           remote->count <= most &&
           vnxi_indices_type_is_known(args->local_rows.type) &&
           vnxi_indices_type_is_known(args->remote_rows.type);
}

/* `room` has space for the indices. */
static bool
make(vnxi_exfer_t *exfer, const vnxi_xfer_args_t *args, size_t backend,
     int *room, vnxi_nixl_pieces_t *pieces)
{
    vnxi_engine_t *engine = exfer->engine;
    const vnxi_list_t *local = args->local, *remote = args->remote;
    size_t count = args->local_rows.count;

    if (!read_indices(&args->local_rows, local->count, room) ||
        !read_indices(&args->remote_rows, remote->count, room + count) ||
        __builtin_mul_overflow(local->row_len, count, &pieces->bytes)) {
        return false;
    }
    pieces->count = count_pieces(args, room, room + count);
    if (pieces->count < count / 2 || !need_twin(engine, local, backend) ||
        !need_twin(engine, remote, backend)) {
        return false; /* making few pieces is cheaper */
    }
    nixl_capi_xfer_req_t request = NULL;
    int code = engine->capi->make_xfer_req(
        engine->agent, (int)args->op, twin_of(local)->handle, room, count,
        twin_of(remote)->handle, room + count, count, &request,
        engine->backends[backend].options);
    if (code == NIXL_CAPI_SUCCESS) {
        exfer->request = request;
        exfer->backend = engine->backends[backend].name;
    }
    return code == NIXL_CAPI_SUCCESS;
}

bool
vnxi_nixl_make_indexed(vnxi_exfer_t *exfer, const vnxi_xfer_args_t *args,
                       size_t backend, vnxi_nixl_pieces_t *pieces)
{
    vnxi_nixl_pieces_t found = {0};

    if (!is_worth_it(args)) {
        return false;
    }
    size_t size = 2 * args->local_rows.count * sizeof(int);
    int *room = vnxi_recycle_alloc(size);
    bool is_made = room != NULL && make(exfer, args, backend, room, &found);
    vnxi_recycle_free(room, size);
    if (is_made) {
        *pieces = found;
    }
    return is_made;
}
