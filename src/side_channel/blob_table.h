/*
 * The table of a listener: the blob that it serves under each key.  The
 * program writes the table while the transport's thread reads it.  A blob that
 * was found stays valid after the table has changed.
 *
 * A key is 0 to VNX_SIDE_CHANNEL_KEY_MAX bytes; the empty key is the default.
 */
#ifndef VNXI_SIDE_CHANNEL_BLOB_TABLE_H
#define VNXI_SIDE_CHANNEL_BLOB_TABLE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/side_channel.h>

#include "base/mutex.h"
#include "base/name_map.h"

/* -- Blobs ---------------------------------------------------------------- */

/* The bytes of one key.  All connections share one copy, and each transport
 * writes its own frame around it.  Immutable; any thread may release it. */
typedef struct vnxi_blob {
    atomic_size_t refs;
    /* Random, and different for every blob ever created; used as an ETag. */
    uint64_t version;
    size_t len, key_len;
    unsigned char data[]; /* then the key */
} vnxi_blob_t;

/* Create a blob with copies of the bytes and the key.  NULL: no memory. */
vnxi_blob_t *vnxi_blob_new(const vnx_side_channel_blob_t *given);
void vnxi_blob_release(vnxi_blob_t *blob); /* NULL is allowed */

/* -- The table ------------------------------------------------------------ */

typedef struct vnxi_blob_table {
    vnxi_mutex_t lock;
    vnxi_name_map_t map; /* protected by lock; its keys are in the blobs */
} vnxi_blob_table_t;

void vnxi_blob_table_init(vnxi_blob_table_t *blobs);

/* Remove all blobs. */
void vnxi_blob_table_clear(vnxi_blob_table_t *blobs);

/* Clear the table, after the last use of it. */
void vnxi_blob_table_fini(vnxi_blob_table_t *blobs);

/* Serve the blob, which is taken; it replaces the blob that its key had.
 * False: no memory, and the table is unchanged. */
bool vnxi_blob_table_set(vnxi_blob_table_t *blobs, vnxi_blob_t *blob);

/* Serve `count` blobs, which are taken, or none of them.  False: no memory,
 * and the table is unchanged. */
bool vnxi_blob_table_set_all(vnxi_blob_table_t *blobs, vnxi_blob_t **list,
                             size_t count);

/* Remove the blob of a key.  False: the key has none. */
bool vnxi_blob_table_remove(vnxi_blob_table_t *blobs, const void *key,
                            size_t key_len);

/* Find the blob of a key.  Returns owned: vnxi_blob_release(); NULL: the key
 * has none.  Copies nothing, and does not wait while another thread
 * copies. */
vnxi_blob_t *vnxi_blob_table_find(vnxi_blob_table_t *blobs, const void *key,
                                  size_t key_len);

/* Write a readable form of a key, cut to `size` bytes including the
 * final NUL.  Keys come from the network, so bytes that are not printable
 * become '?'. */
void vnxi_key_text(const void *key, size_t key_len, char *text, size_t size);

#endif
