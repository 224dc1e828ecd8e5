/*
 * Which agent a blob comes from and which state of it the blob shows: the
 * connection entry "VNX" of our metadata (docs/wire.md).  Stock agents skip
 * it.  Little-endian, versioned; a longer body of a later version with the
 * same major number is accepted.
 */
#ifndef VNXI_NATIVE_IDENTITY_H
#define VNXI_NATIVE_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

#include "base/bytes.h"

#define VNXI_INSTANCE_SIZE 16

typedef struct vnxi_identity {
    unsigned char instance[VNXI_INSTANCE_SIZE]; /* random, per agent */
    uint64_t epoch; /* of the registry; counts registrations and removals */
    bool partial;   /* the blob has only some of the regions */
} vnxi_identity_t;

void vnxi_identity_write(vnxi_writer_t *writer,
                         const vnxi_identity_t *identity);

/* VNX_ERR_MISMATCH if the data is not an identity of a known version. */
vnx_status_t vnxi_identity_read(const void *data, size_t len,
                                vnxi_identity_t *identity_p,
                                vnx_error_t *error);

#endif
