/*
 * A reply, encoded once and shared: however many connections are being sent a
 * blob, it exists once.  Immutable; retain and release from any thread.
 */
#ifndef VNXI_SIDE_CHANNEL_BLOB_H
#define VNXI_SIDE_CHANNEL_BLOB_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef struct vnxi_blob {
    atomic_size_t refs;
    size_t len;            /* of the whole frame */
    unsigned char frame[]; /* header, then the metadata */
} vnxi_blob_t;

/* A frame around a copy of `data`; NULL when memory is out.  Returns owned:
 * vnxi_blob_release(). */
vnxi_blob_t *vnxi_blob_create(const void *data, uint32_t len);
vnxi_blob_t *vnxi_blob_retain(vnxi_blob_t *blob);
void vnxi_blob_release(vnxi_blob_t *blob); /* NULL is allowed */

#endif
