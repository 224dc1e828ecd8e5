/*
 * Bytes that are served: however many connections are being sent a blob, it
 * exists once, and each transport writes its frame around it.  Immutable;
 * retain and release from any thread.
 */
#ifndef VNXI_SIDE_CHANNEL_BLOB_H
#define VNXI_SIDE_CHANNEL_BLOB_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef struct vnxi_blob {
    atomic_size_t refs;
    /* Random, one for each blob that was ever made: who has bytes under this
     * number has these.  Good for an ETag. */
    uint64_t version;
    size_t len;
    unsigned char data[];
} vnxi_blob_t;

/* A copy of `data`; NULL when memory is out.  Returns owned:
 * vnxi_blob_release(). */
vnxi_blob_t *vnxi_blob_create(const void *data, size_t len);
vnxi_blob_t *vnxi_blob_retain(vnxi_blob_t *blob);
void vnxi_blob_release(vnxi_blob_t *blob); /* NULL is allowed */

/* The same in the form of a callback that frees a sent piece of a blob:
 * evbuffer_add_reference(), zmq_msg_init_data() and their like. */
static inline void
vnxi_blob_sent(const void *data, size_t len, void *blob)
{
    (void)data, (void)len;
    vnxi_blob_release(blob);
}

#endif
