/*
 * Registration, and queries of storage backends.
 *
 * Design notes.  The library registers a range as often as it is told.  The
 * registry counts uses, so that the library has each range only once per
 * backend.  The new rows of a batch are passed to one backend after the other,
 * in one call each, so that it is known which backends have them.  If the
 * caller does not name backends, one that accepts the batch is enough; a
 * backend that the caller names must accept it.
 *
 * Deregistering revokes the regions first, so that no new post begins.  It
 * then waits for posts inside the library and for transfers in flight from or
 * to those regions, which cannot be stopped.  Only then are the regions
 * deregistered in the library.  Those whose transfers may still be going on
 * after that stay registered.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "engine/nixl/xfer.h"

#define ADD "vnx_agent_register"
#define REMOVE "vnx_agent_deregister"
#define QUERY "vnx_agent_query_memory"

/* Limit of the wait for a transfer in flight. */
#define LAND_NS 5000000000u

/* A batch being registered: its distinct regions in the order of the wire, and
 * the backends that have each of them so far. */
typedef struct batch_row {
    const vnx_reg_desc_t *desc;
    vnxi_region_t key;
    uint32_t before, now;
} batch_row_t;

struct vnxi_nixl_batch {
    vnxi_engine_t *engine;
    vnx_mem_t mem;
    batch_row_t *rows; /* owned */
    size_t count;
    vnxi_region_table_t *table; /* owned; before */
};

static void
region_fini(vnxi_region_t *region)
{
    free(vnxi_nixl_region(region)->meta);
}

const vnxi_region_class_t vnxi_nixl_region_class = {
    .size = sizeof(vnxi_nixl_region_t),
    .fini = region_fini,
};

/* -- The batch -------------------------------------------------------------
 */

static int
compare_rows(const void *a, const void *b)
{
    const batch_row_t *left = a, *right = b;
    return vnxi_region_compare(&left->key, &right->key);
}

static const vnxi_region_t *
known_region(const vnxi_region_table_t *table, const vnxi_region_t *key)
{
    return vnxi_region_table_exact(table, key->mem, key->addr, key->len,
                                   key->dev);
}

static vnx_status_t
batch_init(vnxi_nixl_batch_t *batch, const vnx_reg_desc_t *descs, size_t count,
           vnx_error_t *error)
{
    size_t kept = 0;

    batch->table = vnxi_registry_snapshot(batch->engine->registry, NULL);
    batch->rows = malloc((count + 1) * sizeof *batch->rows);
    if (batch->table == NULL || batch->rows == NULL) {
        return vnxi_error_no_memory(error, ADD, count * sizeof *batch->rows);
    }
    for (size_t i = 0; i < count; i++) {
        batch->rows[i] = (batch_row_t){
            &descs[i], vnxi_region_key(batch->mem, &descs[i]), 0, 0};
    }
    qsort(batch->rows, count, sizeof *batch->rows, compare_rows);
    for (size_t i = 0; i < count; i++) {
        if (kept == 0 ||
            compare_rows(&batch->rows[kept - 1], &batch->rows[i]) != 0) {
            batch->rows[kept++] = batch->rows[i];
        }
    }
    batch->count = kept;
    for (size_t i = 0; i < kept; i++) {
        batch_row_t *row = &batch->rows[i];
        const vnxi_region_t *known = known_region(batch->table, &row->key);
        row->before = row->now =
            known != NULL
                ? (uint32_t)atomic_load(&vnxi_nixl_region(known)->backends)
                : 0;
    }
    return VNX_OK;
}

static void
batch_fini(vnxi_nixl_batch_t *batch)
{
    vnxi_region_table_release(batch->table);
    free(batch->rows);
}

/* The registry's hook for a region of the batch. */
vnx_status_t
vnxi_nixl_attach(void *context, vnxi_region_t *region, vnx_error_t *error)
{
    const vnxi_nixl_batch_t *batch = ((vnxi_engine_t *)context)->batch;
    batch_row_t key = {.key = *region};
    const batch_row_t *row = bsearch(&key, batch->rows, batch->count,
                                     sizeof *batch->rows, compare_rows);
    vnxi_nixl_region_t *kept = vnxi_nixl_region(region);
    size_t len = row->desc->meta_len;

    kept->meta = len > 0 ? malloc(len) : NULL;
    if (len > 0 && kept->meta == NULL) {
        return vnxi_error_no_memory(error, ADD, len);
    }
    if (len > 0) {
        memcpy(kept->meta, row->desc->meta, len);
    }
    kept->meta_len = len;
    atomic_init(&kept->backends, row->now);
    return VNX_OK;
}

/* -- The library's lists ---------------------------------------------------
 */

static nixl_capi_reg_dlist_t
make_list(const vnxi_capi_t *capi, vnx_mem_t mem)
{
    nixl_capi_reg_dlist_t list = NULL;
    return capi->create_reg_dlist((int)mem, &list) == NIXL_CAPI_SUCCESS ? list
                                                                        : NULL;
}

static bool
add_region(const vnxi_capi_t *capi, nixl_capi_reg_dlist_t list,
           const vnxi_region_t *key, const void *meta, size_t meta_len)
{
    /* Length 0 means all of the storage, in the library as here. */
    uint64_t len = key->len == UINT64_MAX ? 0 : key->len;
    return capi->reg_dlist_add_desc(list, key->addr, len, key->dev,
                                    meta_len > 0 ? meta : "",
                                    meta_len) == NIXL_CAPI_SUCCESS;
}

/* The rows of the batch that `backend` has now (or, if not `got`, lacks). */
static nixl_capi_reg_dlist_t
list_rows(const vnxi_nixl_batch_t *batch, uint32_t bit, bool got,
          size_t *count_p)
{
    const vnxi_capi_t *capi = batch->engine->capi;
    nixl_capi_reg_dlist_t list = make_list(capi, batch->mem);
    bool good = list != NULL;

    *count_p = 0;
    for (size_t i = 0; good && i < batch->count; i++) {
        const batch_row_t *row = &batch->rows[i];
        bool is_new = (row->now & bit) != 0 && (row->before & bit) == 0;
        if (got ? is_new : (row->now & bit) == 0) {
            good = add_region(capi, list, &row->key, row->desc->meta,
                              row->desc->meta_len);
            ++*count_p;
        }
    }
    if (!good && list != NULL) {
        capi->destroy_reg_dlist(list);
        list = NULL;
    }
    return list;
}

static vnx_status_t
add_to_backend(vnxi_nixl_batch_t *batch, size_t backend, vnx_error_t *error)
{
    vnxi_engine_t *engine = batch->engine;
    const vnxi_capi_t *capi = engine->capi;
    uint32_t bit = 1u << backend;
    size_t count;
    nixl_capi_reg_dlist_t list = list_rows(batch, bit, false, &count);
    char what[96];

    if (list == NULL) {
        return vnxi_error_no_memory(error, ADD, batch->count);
    }
    int code = count == 0
                   ? NIXL_CAPI_SUCCESS
                   : capi->register_mem(engine->agent, list,
                                        engine->backends[backend].options);
    capi->destroy_reg_dlist(list);
    if (code != NIXL_CAPI_SUCCESS) {
        snprintf(what, sizeof what, "registering %zu %s regions with %s",
                 count, vnx_mem_name(batch->mem),
                 engine->backends[backend].name);
        return vnxi_nixl_failed(code, ADD, what, error);
    }
    for (size_t i = 0; i < batch->count; i++) {
        batch->rows[i].now |= bit;
    }
    return VNX_OK;
}

/* Undo the registrations of this batch. */
static void
undo(vnxi_nixl_batch_t *batch)
{
    vnxi_engine_t *engine = batch->engine;
    const vnxi_capi_t *capi = engine->capi;
    size_t count;

    for (size_t i = 0; i < atomic_load(&engine->backend_count); i++) {
        nixl_capi_reg_dlist_t list = list_rows(batch, 1u << i, true, &count);
        if (list != NULL && count > 0) {
            capi->deregister_mem(engine->agent, list,
                                 engine->backends[i].options);
        }
        if (list != NULL) {
            capi->destroy_reg_dlist(list);
        }
    }
}

/* -- Registering -----------------------------------------------------------
 */

static vnx_status_t
no_backend_for(vnxi_engine_t *engine, vnx_mem_t mem, uint32_t set,
               vnx_error_t *error)
{
    char names[128];
    vnxi_nixl_backend_names(engine, set, names, sizeof names);
    return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, ADD,
                          "no backend accepts %s memory (asked: %s)",
                          vnx_mem_name(mem), names);
}

/* Named backends must all accept the batch; otherwise one is enough. */
static vnx_status_t
add_to_backends(vnxi_nixl_batch_t *batch, uint32_t set, bool all,
                vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    bool one = false;

    for (size_t i = 0; i < VNXI_NIXL_BACKENDS_MAX; i++) {
        if ((set >> i & 1u) == 0) {
            continue;
        }
        vnx_status_t added = add_to_backend(batch, i, error);
        one |= added == VNX_OK;
        status = status == VNX_OK ? added : status;
        if (all && added != VNX_OK) {
            return added;
        }
    }
    return one ? VNX_OK : status;
}

/* Update regions that other backends had already. */
static void
note_known(const vnxi_nixl_batch_t *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        const batch_row_t *row = &batch->rows[i];
        const vnxi_region_t *known =
            row->now != row->before ? known_region(batch->table, &row->key)
                                    : NULL;
        if (known != NULL) {
            atomic_fetch_or(&vnxi_nixl_region(known)->backends, row->now);
        }
    }
}

static vnx_status_t
register_lock_held(vnxi_nixl_batch_t *batch, const vnx_reg_desc_t *descs,
                   size_t count, uint32_t set, bool all, vnx_error_t *error)
{
    vnxi_engine_t *engine = batch->engine;
    vnx_status_t status = batch_init(batch, descs, count, error);

    if (status == VNX_OK) {
        status = add_to_backends(batch, set, all, error);
    }
    if (status == VNX_OK) {
        engine->batch = batch;
        status = vnxi_registry_add(engine->registry, batch->mem, descs, count,
                                   error);
        engine->batch = NULL;
    }
    if (status == VNX_OK) {
        note_known(batch);
    } else if (batch->rows != NULL) {
        undo(batch);
    }
    batch_fini(batch);
    return status;
}

vnx_status_t
vnxi_nixl_register(vnxi_engine_t *engine, vnx_mem_t mem,
                   const vnx_reg_desc_t *descs, size_t count,
                   const char *const *backends, vnx_error_t *error)
{
    vnxi_nixl_batch_t batch = {.engine = engine, .mem = mem};
    uint32_t asked = 0;

    vnx_status_t status =
        vnxi_nixl_backend_set(engine, backends, ADD, &asked, error);
    if (status == VNX_OK) {
        status = vnxi_registry_check(mem, descs, count, error);
    }
    if (status == VNX_OK) {
        status = vnxi_nixl_check_files(mem, descs, count, error);
    }
    if (status != VNX_OK || count == 0) {
        return status;
    }
    uint32_t able = vnxi_nixl_backends_for(engine, mem);
    uint32_t set = asked != 0 ? asked : able;
    if ((set & able) != set || set == 0) {
        return no_backend_for(engine, mem, asked, error);
    }
    vnxi_mutex_lock(&engine->mem_lock);
    if (vnxi_nixl_enter(engine)) {
        status =
            register_lock_held(&batch, descs, count, set, asked != 0, error);
        vnxi_nixl_leave(engine);
    } else {
        status = vnxi_nixl_stopped(ADD, error);
    }
    vnxi_mutex_unlock(&engine->mem_lock);
    return status;
}

/* -- Deregistering ---------------------------------------------------------
 */

typedef struct gone {
    vnxi_region_t **regions; /* owned, each retained */
    size_t count;
} gone_t;

static void
collect(void *context, const vnxi_region_t *region, uint64_t epoch)
{
    gone_t *gone = context;
    (void)epoch; /* peers are not told */
    gone->regions[gone->count++] = vnxi_region_retain((vnxi_region_t *)region);
}

/* True: no transfer is in flight on a revoked region.  Adds those that have
 * ended to *ended_p.  Also waits if the engine stops meanwhile, because bytes
 * may then still land: the library's agent exists while anything is in flight
 * and the gate is held. */
static bool
wait_landed(vnxi_engine_t *engine, vnxi_exfer_t **ended_p)
{
    static const struct timespec pause = {0, 50000};
    uint64_t deadline = vnxi_clock_deadline(LAND_NS);

    vnxi_nixl_settle(engine);
    for (;;) {
        vnxi_rwlock_read(&engine->gate);
        bool found = vnxi_nixl_poller_check_revoked(engine, ended_p);
        vnxi_rwlock_unlock(&engine->gate);
        if (!found || vnxi_clock_ns() > deadline) {
            return !found;
        }
        nanosleep(&pause, NULL);
    }
}

static void
remove_from_backend(vnxi_engine_t *engine, vnx_mem_t mem, const gone_t *gone,
                    size_t backend)
{
    const vnxi_capi_t *capi = engine->capi;
    nixl_capi_reg_dlist_t list = make_list(capi, mem);
    bool good = list != NULL;
    size_t count = 0;

    for (size_t i = 0; good && i < gone->count; i++) {
        const vnxi_nixl_region_t *region = vnxi_nixl_region(gone->regions[i]);
        if ((atomic_load(&region->backends) >> backend & 1u) != 0 &&
            !atomic_load(&region->is_kept)) {
            good = add_region(capi, list, gone->regions[i], region->meta,
                              region->meta_len);
            count++;
        }
    }
    if (good && count > 0) {
        good = capi->deregister_mem(engine->agent, list,
                                    engine->backends[backend].options) ==
               NIXL_CAPI_SUCCESS;
    }
    if (list != NULL) {
        capi->destroy_reg_dlist(list);
    }
    if (!good) {
        vnxi_log(VNX_LOG_WARNING, engine->name,
                 "NIXL's backend %s did not deregister %zu %s regions",
                 engine->backends[backend].name, count, vnx_mem_name(mem));
    }
}

static bool
has_kept(const gone_t *gone)
{
    for (size_t i = 0; i < gone->count; i++) {
        if (atomic_load(&vnxi_nixl_region(gone->regions[i])->is_kept)) {
            return true;
        }
    }
    return false;
}

static void
forget(vnxi_engine_t *engine, vnx_mem_t mem, const gone_t *gone,
       vnxi_exfer_t **ended_p)
{
    if (gone->count == 0) {
        return;
    }
    bool has_landed = wait_landed(engine, ended_p);
    if (!has_landed || has_kept(gone)) {
        /* They stay registered, because their bytes may still arrive. */
        vnxi_log(VNX_LOG_ERROR, engine->name,
                 "a transfer on deregistered memory has not "
                 "ended: NIXL keeps the registration");
    }
    if (has_landed && vnxi_nixl_enter(engine)) {
        size_t count = atomic_load(&engine->backend_count);
        for (size_t i = 0; i < count; i++) {
            remove_from_backend(engine, mem, gone, i);
        }
        vnxi_nixl_leave(engine);
    }
}

vnx_status_t
vnxi_nixl_deregister(vnxi_engine_t *engine, vnx_mem_t mem,
                     const vnx_reg_desc_t *descs, size_t count,
                     const char *const *backends, vnx_error_t *error)
{
    gone_t gone = {.count = 0};
    vnxi_exfer_t *ended = NULL;
    uint32_t asked = 0;

    vnx_status_t status =
        vnxi_nixl_backend_set(engine, backends, REMOVE, &asked, error);
    if (status != VNX_OK) {
        return status;
    }
    gone.regions = malloc((count + 1) * sizeof(vnxi_region_t *));
    if (gone.regions == NULL) {
        return vnxi_error_no_memory(error, REMOVE,
                                    count * sizeof(vnxi_region_t *));
    }
    vnxi_mutex_lock(&engine->mem_lock);
    status = vnxi_registry_remove(engine->registry, mem, descs, count, collect,
                                  &gone, error);
    if (status == VNX_OK) {
        forget(engine, mem, &gone, &ended);
    }
    vnxi_mutex_unlock(&engine->mem_lock);
    vnxi_nixl_poller_report(engine, ended);
    for (size_t i = 0; i < gone.count; i++) {
        vnxi_region_release(gone.regions[i]);
    }
    free(gone.regions);
    return status;
}

/* -- Querying a storage backend --------------------------------------------
 */

/* Take the answer for one row.  We own its parameters; the library lends
 * nothing. */
static vnx_status_t
take_answer(const vnxi_capi_t *capi, nixl_capi_query_resp_list_t answers,
            size_t i, vnx_mem_info_t *info, vnx_error_t *error)
{
    vnxi_nixl_params_t params = {0};
    nixl_capi_params_t handle = NULL;
    bool is_there = false;

    if (capi->query_resp_list_has_value(answers, i, &is_there) !=
        NIXL_CAPI_SUCCESS) {
        is_there = false;
    }
    info->is_there = is_there;
    if (!is_there) {
        return VNX_OK;
    }
    if (capi->query_resp_list_get_params(answers, i, &handle) !=
            NIXL_CAPI_SUCCESS ||
        vnxi_nixl_params_take(capi, handle, &params) != VNX_OK) {
        return vnxi_error_no_memory(error, QUERY, 0);
    }
    info->params = params.at;
    info->param_count = params.count;
    return VNX_OK;
}

static vnx_status_t
take_answers(const vnxi_capi_t *capi, nixl_capi_query_resp_list_t answers,
             size_t count, vnx_mem_info_t *infos, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    size_t found = 0;

    capi->query_resp_list_size(answers, &found);
    if (found != count) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, QUERY,
                              "NIXL answered %zu of %zu rows", found, count);
    }
    for (size_t i = 0; status == VNX_OK && i < count; i++) {
        status = take_answer(capi, answers, i, &infos[i], error);
    }
    return status;
}

static bool
add_all(const vnxi_capi_t *capi, nixl_capi_reg_dlist_t list,
        const vnx_reg_desc_t *descs, size_t count)
{
    bool good = true;
    for (size_t i = 0; good && i < count; i++) {
        const vnx_desc_t *desc = &descs[i].desc;
        good = capi->reg_dlist_add_desc(
                   list, desc->addr, desc->len, desc->dev,
                   descs[i].meta_len > 0 ? descs[i].meta : "",
                   descs[i].meta_len) == NIXL_CAPI_SUCCESS;
    }
    return good;
}

static vnx_status_t
query_backend(vnxi_engine_t *engine, vnx_mem_t mem,
              const vnx_reg_desc_t *descs, size_t count, size_t backend,
              vnx_mem_info_t *infos, vnx_error_t *error)
{
    const vnxi_capi_t *capi = engine->capi;
    nixl_capi_reg_dlist_t list = NULL;
    nixl_capi_query_resp_list_t answers = NULL;
    vnx_status_t status;
    char what[96];

    if (capi->create_reg_dlist((int)mem, &list) != NIXL_CAPI_SUCCESS) {
        return vnxi_error_no_memory(error, QUERY, 0);
    }
    if (capi->create_query_resp_list(&answers) != NIXL_CAPI_SUCCESS ||
        !add_all(capi, list, descs, count)) {
        status = vnxi_error_no_memory(error, QUERY, count);
    } else {
        int code = capi->query_mem(engine->agent, list, answers,
                                   engine->backends[backend].options);
        snprintf(what, sizeof what, "querying the backend %s",
                 engine->backends[backend].name);
        status = code == NIXL_CAPI_SUCCESS
                     ? take_answers(capi, answers, count, infos, error)
                     : vnxi_nixl_failed(code, QUERY, what, error);
    }
    if (answers != NULL) {
        capi->destroy_query_resp_list(answers);
    }
    capi->destroy_reg_dlist(list);
    return status;
}

vnx_status_t
vnxi_nixl_query(vnxi_engine_t *engine, vnx_mem_t mem,
                const vnx_reg_desc_t *descs, size_t count, const char *backend,
                vnx_mem_info_t *infos, vnx_error_t *error)
{
    const char *const backends[] = {backend, NULL};
    uint32_t set = 0;

    vnx_status_t status =
        vnxi_nixl_backend_set(engine, backends, QUERY, &set, error);
    if (status != VNX_OK || count == 0) {
        return status;
    }
    if (vnx_mem_name(mem) == NULL ||
        (vnxi_nixl_backends_for(engine, mem) & set) == 0) {
        return vnxi_error_set(
            error, VNX_ERR_NOT_SUPPORTED, QUERY,
            "the backend %s does not accept %s memory", backend,
            vnx_mem_name(mem) != NULL ? vnx_mem_name(mem) : "such");
    }
    if (!vnxi_nixl_enter(engine)) {
        return vnxi_nixl_stopped(QUERY, error);
    }
    status = query_backend(engine, mem, descs, count,
                           (size_t)__builtin_ctz(set), infos, error);
    vnxi_nixl_leave(engine);
    return status;
}
