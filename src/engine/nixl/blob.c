/*
 * The agent's metadata, as written by the library.
 *
 * Design notes.  Partial metadata is cut out of the complete metadata, because
 * the library cannot add connections to selected regions and does not report
 * which region it did not find.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "engine/nixl/nixl.h"
#include "engine/parts/metadata.h"

#define WHOLE "vnx_agent_metadata"
#define PART "vnx_agent_partial_metadata"

/* Get the complete metadata.  Owned: free(). */
static vnx_status_t
whole_blob(vnxi_engine_t *engine, const char *operation, vnx_bytes_t *bytes_p,
           vnx_error_t *error)
{
    void *data = NULL;
    size_t len = 0;
    char names[128];

    if (!vnxi_nixl_enter(engine)) {
        return vnxi_nixl_stopped(operation, error);
    }
    int code = engine->capi->get_local_md(engine->agent, &data, &len);
    if (code == NIXL_CAPI_SUCCESS) {
        vnxi_nixl_poller_listen(engine);
    }
    vnxi_nixl_leave(engine);
    if (code == NIXL_CAPI_ERROR_INVALID_PARAM) {
        vnxi_nixl_backend_names(engine, vnxi_nixl_all_backends(engine), names,
                                sizeof names);
        return vnxi_error_set(
            error, VNX_ERR_INVALID_PARAM, operation,
            "no backend of this agent can reach other agents (it has %s)",
            names);
    }
    if (code != NIXL_CAPI_SUCCESS) {
        return vnxi_nixl_failed(code, operation, "writing metadata", error);
    }
    *bytes_p = (vnx_bytes_t){data, len};
    return VNX_OK;
}

vnx_status_t
vnxi_nixl_metadata(vnxi_engine_t *engine, vnx_bytes_t *bytes_p,
                   vnx_error_t *error)
{
    return whole_blob(engine, WHOLE, bytes_p, error);
}

/* -- Cutting ---------------------------------------------------------------
 */

/* The requested rows, in the order of the wire. */
typedef struct wanted {
    vnxi_region_t *keys; /* owned */
    size_t count;
} wanted_t;

static int
compare_keys(const void *a, const void *b)
{
    return vnxi_region_compare(a, b);
}

static vnx_status_t
not_registered(const vnx_desc_t *desc, size_t row, vnx_error_t *error)
{
    vnxi_error_set(error, VNX_ERR_NOT_FOUND, PART,
                   "no region is registered with exactly these values");
    vnxi_error_desc(error, row, desc->addr, desc->len, desc->dev);
    return VNX_ERR_NOT_FOUND;
}

static vnx_status_t
wanted_init(wanted_t *wanted, vnxi_engine_t *engine, vnx_mem_t mem,
            const vnx_reg_desc_t *descs, size_t count, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    vnxi_region_table_t *table =
        vnxi_registry_snapshot(engine->registry, NULL);
    vnxi_region_t *keys = malloc((count + 1) * sizeof *keys);

    if (table == NULL || keys == NULL) {
        vnxi_region_table_release(table);
        free(keys);
        return vnxi_error_no_memory(error, PART, count * sizeof *keys);
    }
    for (size_t i = 0; status == VNX_OK && i < count; i++) {
        vnxi_region_t *key = &keys[i];
        *key = vnxi_region_key(mem, &descs[i]);
        if (vnxi_region_table_exact(table, mem, key->addr, key->len,
                                    key->dev) == NULL) {
            status = not_registered(&descs[i].desc, i, error);
        }
    }
    vnxi_region_table_release(table);
    if (status != VNX_OK) {
        free(keys);
        return status;
    }
    qsort(keys, count, sizeof *keys, compare_keys);
    *wanted = (wanted_t){keys, count};
    return VNX_OK;
}

static void
cut_section(const wanted_t *wanted, vnxi_md_section_t *section)
{
    size_t kept = 0;

    for (size_t i = 0; i < section->count; i++) {
        const vnxi_md_region_t *row = &section->regions[i];
        vnxi_region_t key = {.mem = section->mem,
                             .addr = row->addr,
                             .len = row->len,
                             .dev = row->dev};
        if (bsearch(&key, wanted->keys, wanted->count, sizeof key,
                    compare_keys) != NULL) {
            section->regions[kept++] = *row;
        }
    }
    section->count = kept;
}

static bool
is_one_of(vnxi_md_bytes_t backend, const char *const *backends)
{
    if (backends == NULL) {
        return true;
    }
    for (; *backends != NULL; backends++) {
        if (vnxi_md_is_named(backend, *backends)) {
            return true;
        }
    }
    return false;
}

/* Keep the requested regions of the named backends and free the rest.  An
 * empty section must not be written. */
static void
cut(vnxi_metadata_t *blob, const wanted_t *wanted, bool with_connection,
    const char *const *backends)
{
    size_t kept = 0;

    for (size_t i = 0; i < blob->section_count; i++) {
        vnxi_md_section_t *section = &blob->sections[i];
        if (is_one_of(section->backend, backends)) {
            cut_section(wanted, section);
        } else {
            section->count = 0;
        }
        if (section->count > 0) {
            blob->sections[kept++] = *section;
        } else {
            free(section->regions);
        }
    }
    blob->section_count = kept;
    kept = 0;
    for (size_t i = 0; with_connection && i < blob->conn_count; i++) {
        if (is_one_of(blob->conns[i].backend, backends)) {
            blob->conns[kept++] = blob->conns[i];
        }
    }
    blob->conn_count = kept;
}

static vnx_status_t
write_blob(const vnxi_metadata_t *blob, vnx_bytes_t *bytes_p,
           vnx_error_t *error)
{
    vnxi_writer_t out = {0};

    vnxi_metadata_write(&out, blob);
    return vnxi_writer_take(&out, &bytes_p->data, &bytes_p->len)
               ? VNX_OK
               : vnxi_error_no_memory(error, PART, 0);
}

vnx_status_t
vnxi_nixl_partial_metadata(vnxi_engine_t *engine, vnx_mem_t mem,
                           const vnx_reg_desc_t *descs, size_t count,
                           bool with_connection, const char *const *backends,
                           vnx_bytes_t *bytes_p, vnx_error_t *error)
{
    vnxi_metadata_t blob;
    vnx_bytes_t whole = {0};
    wanted_t wanted = {0};
    uint32_t set;

    vnx_status_t status =
        vnxi_nixl_backend_set(engine, backends, PART, &set, error);
    if (status == VNX_OK) {
        status = wanted_init(&wanted, engine, mem, descs, count, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    status = whole_blob(engine, PART, &whole, error);
    if (status != VNX_OK) {
        goto out_wanted;
    }
    status = vnxi_metadata_parse(whole.data, whole.len, &blob, error);
    if (status == VNX_OK) {
        cut(&blob, &wanted, with_connection, backends);
        status = write_blob(&blob, bytes_p, error);
        vnxi_metadata_fini(&blob);
    }
    free(whole.data);
out_wanted:
    free(wanted.keys);
    return status;
}
