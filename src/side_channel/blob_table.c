#include "side_channel/blob_table.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"
#include "base/mutex.h"
#include "base/name_map.h"

/* Copy the bytes and the key into a new blob; NULL: no memory. */
static vnxi_blob_t *
blob_new(const vnx_side_channel_blob_t *given)
{
    size_t len = given->length, key_len = given->key_length;
    vnxi_blob_t *blob = len <= SIZE_MAX - sizeof *blob - key_len
                            ? malloc(sizeof *blob + len + key_len)
                            : NULL;
    if (blob == NULL) {
        return NULL;
    }
    atomic_init(&blob->refs, 1);
    /* getrandom() does not fail in practice; the address is the fallback. */
    if (getrandom(&blob->version, sizeof blob->version, GRND_NONBLOCK) !=
        (ssize_t)sizeof blob->version) {
        blob->version = (uintptr_t)blob;
    }
    blob->len = len;
    if (len > 0) {
        memcpy(blob->data, given->data, len);
    }
    if (key_len > 0) {
        memcpy(blob->data + len, given->key, key_len);
    }
    return blob;
}

void
vnxi_blob_release(vnxi_blob_t *blob)
{
    if (blob != NULL &&
        atomic_fetch_sub_explicit(&blob->refs, 1, memory_order_acq_rel) == 1) {
        free(blob);
    }
}

struct vnxi_blob_table {
    atomic_size_t refs;
    vnxi_mutex_t lock;
    vnxi_name_map_t map; /* protected by lock; its keys are in the blobs */
};

vnxi_blob_table_t *
vnxi_blob_table_create(void)
{
    vnxi_blob_table_t *blobs = calloc(1, sizeof *blobs);
    if (blobs != NULL) {
        atomic_init(&blobs->refs, 1);
        vnxi_mutex_init(&blobs->lock, VNXI_RANK_BLOB_TABLE);
    }
    return blobs;
}

vnxi_blob_table_t *
vnxi_blob_table_retain(vnxi_blob_table_t *blobs)
{
    atomic_fetch_add_explicit(&blobs->refs, 1, memory_order_relaxed);
    return blobs;
}

void
vnxi_blob_table_release(vnxi_blob_table_t *blobs)
{
    size_t cursor = 0;
    vnxi_blob_t *blob;

    if (blobs == NULL || atomic_fetch_sub_explicit(
                             &blobs->refs, 1, memory_order_acq_rel) != 1) {
        return;
    }
    while ((blob = vnxi_name_map_next(&blobs->map, &cursor)) != NULL) {
        vnxi_blob_release(blob);
    }
    vnxi_name_map_fini(&blobs->map);
    vnxi_mutex_destroy(&blobs->lock);
    free(blobs);
}

bool
vnxi_blob_table_set(vnxi_blob_table_t *blobs,
                    const vnx_side_channel_blob_t *given)
{
    vnxi_blob_t *blob = blob_new(given);
    if (blob == NULL) {
        return false;
    }
    const unsigned char *key = blob->data + blob->len;
    vnxi_mutex_lock(&blobs->lock);
    vnxi_blob_t *old = vnxi_name_map_get(&blobs->map, key, given->key_length);
    bool done = vnxi_name_map_set(&blobs->map, key, given->key_length, blob);
    vnxi_mutex_unlock(&blobs->lock);
    vnxi_blob_release(done ? old : blob);
    return done;
}

/* The empty key may be given as NULL, but the map needs a pointer. */
static const void *
name_of(const void *key, size_t key_len)
{
    return key_len > 0 ? key : "";
}

bool
vnxi_blob_table_remove(vnxi_blob_table_t *blobs, const void *key,
                       size_t key_len)
{
    vnxi_mutex_lock(&blobs->lock);
    vnxi_blob_t *old =
        vnxi_name_map_remove(&blobs->map, name_of(key, key_len), key_len);
    vnxi_mutex_unlock(&blobs->lock);
    vnxi_blob_release(old);
    return old != NULL;
}

vnxi_blob_t *
vnxi_blob_table_find(vnxi_blob_table_t *blobs, const void *key, size_t key_len)
{
    vnxi_mutex_lock(&blobs->lock);
    vnxi_blob_t *blob =
        vnxi_name_map_get(&blobs->map, name_of(key, key_len), key_len);
    if (blob != NULL) {
        atomic_fetch_add_explicit(&blob->refs, 1, memory_order_relaxed);
    }
    vnxi_mutex_unlock(&blobs->lock);
    return blob;
}

size_t
vnxi_rank_key(int64_t pp_rank, int64_t tp_rank, char key[VNXI_RANK_KEY_MAX])
{
    return (size_t)snprintf(key, VNXI_RANK_KEY_MAX, "%" PRId64 ",%" PRId64,
                            pp_rank, tp_rank);
}

void
vnxi_key_text(const void *key, size_t key_len, char *text, size_t size)
{
    const unsigned char *bytes = key;
    size_t count = key_len < size - 1 ? key_len : size - 1;

    for (size_t i = 0; i < count; i++) {
        text[i] = vnxi_error_printable(bytes[i]);
    }
    text[count] = '\0';
}
