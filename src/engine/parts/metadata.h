/*
 * The metadata codec: reads and writes NIXL's wire format (docs/wire.md).
 *
 * It knows only the grammar: names, connections, sections, regions.  The
 * content of a backend's connection info and of a region's public metadata is
 * opaque here; for SHM see shm/shm_wire.h.
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

/* Return whether the bytes are this name.  A name that is NULL matches
 * nothing. */
bool vnxi_md_is_named(vnxi_md_bytes_t bytes, const char *name);

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

/* All bytes are borrowed: from the blob when parsed, from the caller when
 * written.  The arrays of parsed metadata are owned: vnxi_metadata_fini(). */
typedef struct vnxi_metadata {
    vnxi_md_bytes_t agent;
    vnxi_md_conn_t *conns;
    size_t conn_count;
    vnxi_md_section_t *sections;
    size_t section_count;
} vnxi_metadata_t;

#define VNXI_METADATA_CONNS_MAX 256

#define VNXI_OP_LOAD "vnx_agent_load_metadata" /* the operation in errors */

/* Parse and check a whole blob.  Checked are: tags; lengths; counts, against
 * the available bytes (an allocation is never larger than the blob justifies);
 * memory types 0 to 4; non-empty names; at most VNXI_METADATA_CONNS_MAX
 * connections, one per backend; non-empty sections; addr + len without
 * overflow (except that storage of length 2^64 - 1 means "all of it"); and
 * that the blob has no trailing bytes.  Time is linear in the blob.  Errors:
 * VNX_ERR_MISMATCH with the cause and the offset of the byte,
 * VNX_ERR_NO_MEMORY.  Operation: VNXI_OP_LOAD. */
vnx_status_t vnxi_metadata_parse(const void *blob, size_t len,
                                 vnxi_metadata_t *metadata_p,
                                 vnx_error_t *error);
void vnxi_metadata_fini(vnxi_metadata_t *metadata);

/* The parsed blob of the engine contract: for entries of the engines' tables.
 */
struct vnxi_parsed {
    vnxi_metadata_t metadata;
    const void *blob; /* borrowed */
    size_t len;
};

vnx_status_t vnxi_parsed_create(const void *blob, size_t len,
                                struct vnxi_parsed **parsed_p,
                                const void **name_p, size_t *name_len_p,
                                vnx_error_t *error);
void vnxi_parsed_free(struct vnxi_parsed *parsed);

/* The agent's name that a blob claims, borrowed from it.  Ignores everything
 * after the name.  VNX_ERR_MISMATCH: the blob does not begin like metadata. */
vnx_status_t vnxi_metadata_claimed_name(const void *blob, size_t len,
                                        vnxi_md_bytes_t *name_p,
                                        vnx_error_t *error);

/* The offset of the u64 that counts the sections of a blob, and its value.
 * Ignores everything after it.  False: the bytes before it are not metadata,
 * or memory ran out. */
bool vnxi_metadata_sections_at(const void *blob, size_t len, size_t *at_p,
                               uint64_t *count_p);

/* Append one field in the format that NIXL's messages use too: tag, length,
 * bytes, '|'. */
void vnxi_md_field_write(vnxi_writer_t *writer, const char *tag,
                         const void *data, size_t len);

/* Append the blob to `writer` (writer->failed: no memory), readable by stock
 * NIXL.  Sections must not be empty. */
void vnxi_metadata_write(vnxi_writer_t *writer,
                         const vnxi_metadata_t *metadata);

#endif
