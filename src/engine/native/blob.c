/*
 * Our own metadata: a connection for each transport with an entry and an open
 * port, and the connection VNX (the agent's identity); for each transport one
 * section per memory type with regions that it knows.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "engine/native/native.h"
#include "engine/parts/metadata.h"

#define IDENTITY ((vnxi_md_bytes_t){"VNX", 3})

/* A blob under construction: the codec's struct, and the bytes that it points
 * to. */
typedef struct blob {
    vnxi_metadata_t picture;
    vnxi_md_conn_t conns[VNXI_TRANSPORTS + 1];
    vnxi_md_section_t sections[VNXI_TRANSPORTS * VNX_MEM_COUNT];
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

/* The name of a transport in metadata. */
static vnxi_md_bytes_t
name_of(unsigned t)
{
    const char *name = vnxi_transports[t]->entry;
    return (vnxi_md_bytes_t){name, strlen(name)};
}

/* Add the sections of one transport.  The regions are sorted by memory type.
 */
static void
blob_add_sections(blob_t *blob, unsigned t, vnxi_region_t *const *regions,
                  size_t count)
{
    vnxi_md_section_t *section = NULL;

    for (size_t i = 0; i < count; i++) {
        const void *slot = vnxi_region_slot(regions[i], t);
        size_t before = blob->region_bytes.len;
        if (slot == NULL) {
            continue;
        }
        vnxi_transports[t]->write_region(slot, &blob->region_bytes);
        if (blob->region_bytes.len == before) {
            continue;
        }
        if (section == NULL || section->mem != regions[i]->mem) {
            section = &blob->sections[blob->picture.section_count++];
            *section = (vnxi_md_section_t){
                .backend = name_of(t),
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
    blob->regions = calloc(VNXI_TRANSPORTS * count + 1, sizeof *blob->regions);
    if (blob->regions == NULL) {
        return false;
    }
    blob->picture.sections = blob->sections;
    for (unsigned t = VNXI_TRANSPORTS; t-- > 0;) {
        if (vnxi_transports[t]->write_region != NULL) {
            blob_add_sections(blob, t, regions, count);
        }
    }
    const unsigned char *at = blob->region_bytes.data;
    for (size_t i = 0; i < blob->region_count; i++) {
        blob->regions[i].public_data.data = at;
        at += blob->regions[i].public_data.len;
    }
    return !blob->region_bytes.failed;
}

/* The same for the connections. */
static void
blob_add_conns(blob_t *blob, const vnxi_engine_t *engine,
               const vnxi_identity_t *identity)
{
    vnxi_writer_t *bytes = &blob->conn_bytes;
    size_t count = 0, before;

    for (unsigned t = VNXI_TRANSPORTS; t-- > 0;) {
        vnxi_port_t *port = vnxi_native_port(engine, t);
        if (port != NULL && port->transport->write_info != NULL) {
            before = bytes->len;
            port->transport->write_info(port, bytes);
            if (bytes->len == before) {
                continue;
            }
            blob->conns[count++] =
                (vnxi_md_conn_t){name_of(t), {NULL, bytes->len - before}};
        }
    }
    before = bytes->len;
    vnxi_identity_write(bytes, identity);
    blob->conns[count++] =
        (vnxi_md_conn_t){IDENTITY, {NULL, bytes->len - before}};
    const unsigned char *at = bytes->data;
    for (size_t i = 0; i < count; i++) {
        blob->conns[i].info.data = at;
        at += blob->conns[i].info.len;
    }
    blob->picture.conns = blob->conns;
    blob->picture.conn_count = count;
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
    static const char operation[] = "vnx_agent_metadata";
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
                           "vnx_agent_partial_metadata",
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
    static const char operation[] = "vnx_agent_partial_metadata";
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
