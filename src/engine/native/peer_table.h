/*
 * Builds the table of a peer's regions from its metadata.
 */
#ifndef VNXI_NATIVE_PEER_TABLE_H
#define VNXI_NATIVE_PEER_TABLE_H

#include "engine/native/native.h"
#include "engine/parts/metadata.h"

typedef struct vnxi_peer_table_args {
    const vnxi_metadata_t *blob;
    vnxi_native_peer_t *peer;       /* its conns select the sections to use */
    const vnxi_region_table_t *old; /* NULL: the peer is new */
    bool adds_only;                 /* keep the regions of `old` */
    uint64_t epoch;                 /* of the blob */
} vnxi_peer_table_args_t;

/* Build the new table.  Region objects that are still valid are kept, so that
 * lists prepared on them stay valid; the others are created.  After an error
 * nothing has changed. */
vnx_status_t vnxi_peer_table_build(const vnxi_peer_table_args_t *args,
                                   vnxi_region_table_t **table_p,
                                   vnx_error_t *error);

#endif
