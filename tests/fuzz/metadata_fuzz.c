/*
 * Arbitrary metadata: its signature, the parser, the identity, the data for
 * SHM, and the region table built from it.  Accepted metadata must be written
 * back unchanged, and every region of it must be found.  Signed metadata must
 * verify, and no other signature may.
 */
#include "fuzz.h"

#include "engine/native/identity.h"
#include "engine/native/shm/shm_wire.h"
#include "engine/parts/metadata.h"
#include "engine/parts/region.h"
#include "engine/parts/signature.h"

#define SECRET "correct horse battery staple" /* of the signed inputs */

static void
check_written_again(const vnxi_metadata_t *metadata, const uint8_t *data,
                    size_t size)
{
    vnxi_writer_t writer = {0};
    vnxi_metadata_write(&writer, metadata);
    must(!writer.failed && writer.len == size &&
         memcmp(writer.data, data, size) == 0);
    vnxi_writer_fini(&writer);
}

static void
check_conn(const vnxi_md_conn_t *conn)
{
    vnxi_shm_info_t info;
    vnxi_writer_t writer = {0};
    vnx_error_t error;
    if (vnxi_shm_info_read(conn->info.data, conn->info.len, &info, &error) !=
        VNX_OK) {
        return;
    }
    /* Bytes after the socket's name belong to a later version. */
    vnxi_shm_info_write(&writer, &info);
    must(writer.len <= conn->info.len && info.pid > 0 &&
         strlen(info.socket) > 0);
    vnxi_writer_fini(&writer);
}

static void
check_identity(const vnxi_md_conn_t *conn)
{
    vnxi_identity_t identity;
    vnxi_writer_t writer = {0};
    vnx_error_t error;
    if (vnxi_identity_read(conn->info.data, conn->info.len, &identity,
                           &error) != VNX_OK) {
        return;
    }
    vnxi_identity_write(&writer, &identity);
    must(writer.len <= conn->info.len);
    vnxi_writer_fini(&writer);
}

static void
check_table(const vnxi_md_section_t *section)
{
    vnxi_region_t **regions = calloc(section->count, sizeof(vnxi_region_t *));
    must(regions != NULL);
    for (size_t i = 0; i < section->count; i++) {
        const vnxi_md_region_t *row = &section->regions[i];
        regions[i] = vnxi_region_create(NULL, section->mem, row->addr,
                                        row->len, row->dev);
        must(regions[i] != NULL);
    }
    vnxi_region_table_t *table =
        vnxi_region_table_create(regions, section->count);
    must(table != NULL);
    for (size_t i = 0; i < section->count; i++) {
        const vnxi_region_t *region = regions[i];
        bool wraps = region->len > UINT64_MAX - region->addr;
        must(vnxi_region_table_exact(table, region->mem, region->addr,
                                     region->len, region->dev) != NULL);
        must(wraps ==
             (vnxi_region_table_find(table, region->mem, region->addr,
                                     region->len, region->dev) == NULL));
        vnxi_region_release(regions[i]);
    }
    vnxi_region_table_release(table);
    free(regions);
}

static void
check_section(const vnxi_md_section_t *section)
{
    must(section->count > 0);
    for (size_t i = 0; i < section->count; i++) {
        const vnxi_md_bytes_t *bytes = &section->regions[i].public_data;
        vnxi_map_info_t map_info = VNXI_MAP_INFO_NONE;
        vnx_error_t error;
        vnx_status_t status =
            vnxi_shm_region_read(bytes->data, bytes->len, &map_info, &error);
        must(status == VNX_OK || map_info.fd == -1);
    }
    check_table(section);
}

/* Sign metadata and flip a bit that the input chooses. */
static void
check_signing(const vnxi_signature_key_t *key, const uint8_t *data,
              size_t size)
{
    vnx_bytes_t blob = {malloc(size), size};
    vnxi_metadata_t metadata;
    must(blob.data != NULL);
    memcpy(blob.data, data, size);
    must(vnxi_signature_add(key, "fuzz", &blob, NULL) == VNX_OK);
    must(blob.len == size + VNXI_SIGNATURE_LEN);
    must(vnxi_signature_check(key, blob.data, blob.len, NULL) == VNX_OK);
    must(vnxi_metadata_parse(blob.data, blob.len, &metadata, NULL) == VNX_OK);
    vnxi_metadata_fini(&metadata);
    uint64_t bit = vnxi_hash(data, size) % (8 * blob.len);
    ((uint8_t *)blob.data)[bit / 8] ^= (uint8_t)(1u << bit % 8);
    must(vnxi_signature_check(key, blob.data, blob.len, NULL) != VNX_OK);
    free(blob.data);
}

/* A valid signature equals the one computed over the rest. */
static void
check_signed(const vnxi_signature_key_t *key, const uint8_t *data, size_t size)
{
    vnxi_metadata_t metadata;
    vnxi_writer_t writer = {0};
    vnx_bytes_t blob;
    must(size > VNXI_SIGNATURE_LEN);
    if (vnxi_metadata_parse(data, size, &metadata, NULL) != VNX_OK) {
        return; /* an agent with the secret may sign what is not metadata */
    }
    must(metadata.section_count > 0);
    metadata.section_count--;
    vnxi_metadata_write(&writer, &metadata);
    metadata.section_count++;
    vnxi_metadata_fini(&metadata);
    must(vnxi_writer_take(&writer, &blob.data, &blob.len));
    must(vnxi_signature_add(key, "fuzz", &blob, NULL) == VNX_OK);
    must(blob.len == size && memcmp(blob.data, data, size) == 0);
    free(blob.data);
}

static void
check_signatures(const uint8_t *data, size_t size, bool is_metadata)
{
    vnxi_signature_key_t key = {.is_set = false};
    vnx_error_t error;
    if (!vnxi_mac_is_there()) {
        return;
    }
    must(vnxi_signature_key_init(&key, SECRET, strlen(SECRET), NULL) ==
         VNX_OK);
    vnx_status_t status = vnxi_signature_check(&key, data, size, &error);
    must(status == VNX_OK || status == VNX_ERR_NOT_ALLOWED ||
         (status == VNX_ERR_MISMATCH && !is_metadata));
    if (status == VNX_OK) {
        check_signed(&key, data, size);
    }
    if (is_metadata) {
        check_signing(&key, data, size);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    vnxi_metadata_t metadata;
    vnx_error_t error;
    vnx_status_t status = vnxi_metadata_parse(data, size, &metadata, &error);
    check_signatures(data, size, status == VNX_OK);
    must(status == VNX_OK || status == VNX_ERR_MISMATCH);
    if (status != VNX_OK) {
        must(strncmp(error.cause, "metadata byte ", 14) == 0);
        return 0;
    }
    check_written_again(&metadata, data, size);
    for (size_t i = 0; i < metadata.conn_count; i++) {
        check_conn(&metadata.conns[i]);
        check_identity(&metadata.conns[i]);
    }
    for (size_t i = 0; i < metadata.section_count; i++) {
        check_section(&metadata.sections[i]);
    }
    vnxi_metadata_fini(&metadata);
    return 0;
}
