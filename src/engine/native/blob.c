/*
 * Our own metadata: the connections UCX (if open), SHM and VNX (the agent's
 * identity), and for each of the first two one section per memory type with
 * regions that it reaches.
 */
#include <stdlib.h>

#include "base/bytes.h"
#include "base/error.h"
#include "engine/native/native.h"
#include "engine/parts/metadata.h"

#define UCX ((vnxi_md_bytes_t){"UCX", 3})
#define SHM ((vnxi_md_bytes_t){"SHM", 3})
#define IDENTITY ((vnxi_md_bytes_t){"VNX", 3})
#define BACKENDS 2u

/* Writes how one backend describes a region; false: it does not reach the
 * region. */
typedef bool (*write_region_t)(vnxi_writer_t *writer,
                               const vnxi_region_t *region);

/* A blob under construction: the codec's struct, and the bytes that it points
 * to. */
typedef struct blob {
    vnxi_metadata_t picture;
    vnxi_md_conn_t conns[BACKENDS + 1];
    vnxi_md_section_t sections[BACKENDS * VNX_MEM_COUNT];
    vnxi_md_region_t *regions; /* of all sections */
    size_t region_count;
    vnxi_writer_t conn_bytes, region_bytes;
} blob_t;

static void
blob_fini(blob_t *blob)
{
    free(blob->regions);
    vnxi_writer_fini(&blob->conn_bytes);
    vnxi_writer_fini(&blob->region_bytes);
}

static bool
write_shm(vnxi_writer_t *writer, const vnxi_region_t *region)
{
    if (region->mem != VNX_MEM_DRAM) {
        return false;
    }
    const vnxi_map_info_t map_info = vnxi_region_map_info(region);
    vnxi_shm_region_write(writer, &map_info);
    return true;
}

/* Always the same bytes for a region, as stock agents require. */
static bool
write_ucx(vnxi_writer_t *writer, const vnxi_region_t *region)
{
    const vnxi_ucx_mem_t *mem = vnxi_region_ucx_mem(region);
    if (mem == NULL) {
        return false;
    }
    vnxi_write_bytes(writer, mem->key, mem->key_len);
    return true;
}

/* Add the sections of one backend.  The regions are sorted by memory type. */
static void
blob_add_sections(blob_t *blob, vnxi_md_bytes_t backend, write_region_t write,
                  vnxi_region_t *const *regions, size_t count)
{
    vnxi_md_section_t *section = NULL;

    for (size_t i = 0; i < count; i++) {
        size_t before = blob->region_bytes.len;
        if (!write(&blob->region_bytes, regions[i])) {
            continue;
        }
        if (section == NULL || section->mem != regions[i]->mem) {
            section = &blob->sections[blob->picture.section_count++];
            *section = (vnxi_md_section_t){
                .backend = backend,
                .mem = regions[i]->mem,
                .regions = &blob->regions[blob->region_count],
            };
        }
        section->count++;
        blob->regions[blob->region_count++] = (vnxi_md_region_t){
            .addr = regions[i]->addr,
            .len = regions[i]->len,
            .dev = regions[i]->dev,
            .public_data = {NULL, blob->region_bytes.len - before},
        };
    }
}

/* The public data of all regions is in one growing buffer, so its addresses
 * are known only when the buffer is complete: first the lengths are set, then
 * the addresses. */
static bool
blob_write_regions(blob_t *blob, vnxi_region_t *const *regions, size_t count)
{
    blob->regions = calloc(BACKENDS * count + 1, sizeof *blob->regions);
    if (blob->regions == NULL) {
        return false;
    }
    blob->picture.sections = blob->sections;
    blob_add_sections(blob, UCX, write_ucx, regions, count);
    blob_add_sections(blob, SHM, write_shm, regions, count);
    const unsigned char *at = blob->region_bytes.data;
    for (size_t i = 0; i < blob->region_count; i++) {
        blob->regions[i].public_data.data = at;
        at += blob->regions[i].public_data.len;
    }
    return !blob->region_bytes.failed;
}

static void
blob_add_conns(blob_t *blob, vnxi_engine_t *engine,
               const vnxi_identity_t *identity)
{
    vnxi_ucx_t *ucx = atomic_load(&engine->ucx);
    vnxi_md_bytes_t address;

    blob->picture.conns = blob->conns;
    if (ucx != NULL) {
        address.data = vnxi_ucx_address(ucx, &address.len);
        blob->conns[blob->picture.conn_count++] =
            (vnxi_md_conn_t){UCX, address};
    }
    vnxi_shm_info_write(&blob->conn_bytes, &engine->info);
    size_t shm = blob->conn_bytes.len;
    vnxi_identity_write(&blob->conn_bytes, identity);
    blob->conns[blob->picture.conn_count++] =
        (vnxi_md_conn_t){SHM, {blob->conn_bytes.data, shm}};
    blob->conns[blob->picture.conn_count++] = (vnxi_md_conn_t){
        IDENTITY, {blob->conn_bytes.data + shm, blob->conn_bytes.len - shm}};
}

static vnx_status_t
blob_make(vnxi_engine_t *engine, vnxi_region_t *const *regions, size_t count,
          const vnxi_identity_t *identity, const char *operation,
          vnx_bytes_t *bytes_p, vnx_error_t *error)
{
    blob_t blob = {.picture = {.agent = {engine->name, engine->name_len}}};
    vnxi_writer_t out = {0};

    if (identity != NULL) {
        blob_add_conns(&blob, engine, identity);
    }
    bool is_made =
        blob_write_regions(&blob, regions, count) && !blob.conn_bytes.failed;
    if (is_made) {
        vnxi_metadata_write(&out, &blob.picture);
        is_made = vnxi_writer_take(&out, &bytes_p->data, &bytes_p->len);
    }
    blob_fini(&blob);
    return is_made ? VNX_OK
                   : vnxi_error_no_memory(error, operation,
                                          count * sizeof *blob.regions);
}

vnx_status_t
vnxi_native_metadata(vnxi_engine_t *engine, vnx_bytes_t *bytes_p,
                     vnx_error_t *error)
{
    static const char operation[] = "get_agent_metadata";
    vnxi_identity_t identity = engine->identity;
    vnxi_region_table_t *table =
        vnxi_registry_snapshot(engine->registry, &identity.epoch);
    size_t count = table != NULL ? vnxi_region_table_count(table) : 0;
    vnxi_region_t **regions = calloc(count + 1, sizeof(vnxi_region_t *));
    vnx_status_t status;

    if (table == NULL || regions == NULL) {
        status =
            vnxi_error_no_memory(error, operation, count * sizeof *regions);
    } else {
        for (size_t i = 0; i < count; i++) {
            regions[i] = vnxi_region_table_at(table, i);
        }
        status = blob_make(engine, regions, count, &identity, operation,
                           bytes_p, error);
    }
    free(regions);
    vnxi_region_table_release(table);
    return status;
}

static vnx_status_t
find_regions(const vnxi_region_table_t *table, vnx_mem_t mem,
             const vnx_reg_desc_t *descs, size_t count, vnxi_region_t **found,
             vnx_error_t *error)
{
    for (size_t i = 0; i < count; i++) {
        const vnx_desc_t *d = &descs[i].desc;
        found[i] =
            vnxi_region_table_exact(table, mem, d->addr, d->len, d->dev);
        if (found[i] == NULL) {
            vnxi_error_set(error, VNX_ERR_NOT_FOUND,
                           "get_partial_agent_metadata",
                           "no region is registered with exactly these "
                           "values");
            vnxi_error_desc(error, i, d->addr, d->len, d->dev);
            return VNX_ERR_NOT_FOUND;
        }
    }
    return VNX_OK;
}

vnx_status_t
vnxi_native_partial_metadata(vnxi_engine_t *engine, vnx_mem_t mem,
                             const vnx_reg_desc_t *descs, size_t count,
                             bool with_connection, const char *const *backends,
                             vnx_bytes_t *bytes_p, vnx_error_t *error)
{
    static const char operation[] = "get_partial_agent_metadata";
    vnxi_identity_t identity = engine->identity;
    vnx_status_t status =
        vnxi_native_check_backends(engine, backends, operation, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_region_table_t *table =
        vnxi_registry_snapshot(engine->registry, &identity.epoch);
    vnxi_region_t **found = calloc(count + 1, sizeof(vnxi_region_t *));
    identity.partial = true;
    if (table == NULL || found == NULL) {
        status = vnxi_error_no_memory(error, operation, count * sizeof *found);
    } else {
        status = find_regions(table, mem, descs, count, found, error);
    }
    if (status == VNX_OK) {
        status =
            blob_make(engine, found, count, with_connection ? &identity : NULL,
                      operation, bytes_p, error);
    }
    free(found);
    vnxi_region_table_release(table);
    return status;
}
