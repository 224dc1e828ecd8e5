/*
 * The metadata codec: NIXL's wire format (docs/wire.md), both ways.
 *
 * Knows the grammar only: names, connections, sections, regions.  What a
 * backend puts into its connection info and into a region's public metadata
 * is bytes here; for SHM see shm/shm_wire.h.
 */
#ifndef VNXI_PARTS_METADATA_H
#define VNXI_PARTS_METADATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

#include "base/bytes.h"

typedef struct vnxi_md_bytes {
    const void *data; /* borrowed */
    size_t len;
} vnxi_md_bytes_t;

typedef struct vnxi_md_conn {
    vnxi_md_bytes_t backend; /* "SHM" */
    vnxi_md_bytes_t info;
} vnxi_md_conn_t;

typedef struct vnxi_md_region {
    uint64_t addr, len, dev;
    vnxi_md_bytes_t public_data;
} vnxi_md_region_t;

typedef struct vnxi_md_section {
    vnxi_md_bytes_t backend;
    vnx_mem_t mem;
    vnxi_md_region_t *regions;
    size_t count; /* > 0 */
} vnxi_md_section_t;

/* All bytes are borrowed: from the blob when parsed, from the writer's caller
 * when written.  The arrays are owned when parsed: vnxi_metadata_fini(). */
typedef struct vnxi_metadata {
    vnxi_md_bytes_t agent;
    vnxi_md_conn_t *conns;
    size_t conn_count;
    vnxi_md_section_t *sections;
    size_t section_count;
} vnxi_metadata_t;

#define VNXI_METADATA_CONNS_MAX 256

/* Parse and check a whole blob (VNX_ERR_MISMATCH names what is wrong and at
 * which byte; VNX_ERR_NO_MEMORY): tags, lengths, counts against the bytes that
 * are there (never an allocation that the blob's size does not justify),
 * memory types 0 to 4, non-empty names, at most VNXI_METADATA_CONNS_MAX
 * connections and one a backend, no empty section, addr + len that does not
 * overflow (but storage of length 2^64 - 1 means "all of it"), no bytes left
 * over.  Time is linear in the blob.  Operation: "add_remote_agent". */
vnx_status_t vnxi_metadata_parse(const void *blob, size_t len,
                                 vnxi_metadata_t *metadata_p,
                                 vnx_error_t *error);
void vnxi_metadata_fini(vnxi_metadata_t *metadata);

/* The agent's name in a blob, which is parsed and checked as a whole; borrowed
 * from the blob. */
vnx_status_t vnxi_metadata_name(const void *blob, size_t len,
                                const void **name_p, size_t *name_len_p,
                                vnx_error_t *error);

/* What a blob claims to be the agent's name; nothing behind it is looked at.
 * Borrowed from the blob.  VNX_ERR_MISMATCH: it does not begin as metadata
 * does. */
vnx_status_t vnxi_metadata_claimed_name(const void *blob, size_t len,
                                        vnxi_md_bytes_t *name_p,
                                        vnx_error_t *error);

/* Where a blob counts its sections, and how many it counts: the offset of the
 * u64.  Nothing behind it is looked at.  False: what comes before it is not
 * metadata, or there is no memory. */
bool vnxi_metadata_sections_at(const void *blob, size_t len, size_t *at_p,
                               uint64_t *count_p);

/* Append one field as NIXL's messages have it, too: tag, length, bytes, '|'.
 */
void vnxi_md_field_write(vnxi_writer_t *writer, const char *tag,
                         const void *data, size_t len);

/* Append the blob to `writer` (writer->failed: no memory).  Writes what stock
 * NIXL would read; sections must not be empty. */
void vnxi_metadata_write(vnxi_writer_t *writer,
                         const vnxi_metadata_t *metadata);

#endif
