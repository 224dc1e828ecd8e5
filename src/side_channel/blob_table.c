#include "side_channel/blob_table.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/error.h"

vnxi_blob_t *
vnxi_blob_new(const vnx_side_channel_blob_t *given)
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
    blob->key_len = key_len;
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

void
vnxi_blob_table_init(vnxi_blob_table_t *blobs)
{
    *blobs = (vnxi_blob_table_t){0};
    vnxi_mutex_init(&blobs->lock, VNXI_RANK_BLOB_TABLE);
}

void
vnxi_blob_table_clear(vnxi_blob_table_t *blobs)
{
    size_t cursor = 0;
    vnxi_blob_t *blob;

    vnxi_mutex_lock(&blobs->lock);
    vnxi_name_map_t map = blobs->map;
    blobs->map = (vnxi_name_map_t){0};
    vnxi_mutex_unlock(&blobs->lock);
    while ((blob = vnxi_name_map_next(&map, &cursor)) != NULL) {
        vnxi_blob_release(blob);
    }
    vnxi_name_map_fini(&map);
}

void
vnxi_blob_table_fini(vnxi_blob_table_t *blobs)
{
    vnxi_blob_table_clear(blobs);
    vnxi_mutex_destroy(&blobs->lock);
}

/* Set the blob of a key, for which there is room; returns the one before. */
static vnxi_blob_t *
replace_lock_held(vnxi_blob_table_t *blobs, vnxi_blob_t *blob)
{
    const unsigned char *key = blob->data + blob->len;
    vnxi_blob_t *old = vnxi_name_map_get(&blobs->map, key, blob->key_len);

    vnxi_name_map_set(&blobs->map, key, blob->key_len, blob);
    return old;
}

bool
vnxi_blob_table_set_all(vnxi_blob_table_t *blobs, vnxi_blob_t **list,
                        size_t count)
{
    vnxi_mutex_lock(&blobs->lock);
    bool done = vnxi_name_map_reserve(&blobs->map, count);
    for (size_t i = 0; done && i < count; i++) {
        list[i] = replace_lock_held(blobs, list[i]);
    }
    vnxi_mutex_unlock(&blobs->lock);
    for (size_t i = 0; i < count; i++) {
        vnxi_blob_release(list[i]); /* the old one, or the one not served */
    }
    return done;
}

bool
vnxi_blob_table_set(vnxi_blob_table_t *blobs, vnxi_blob_t *blob)
{
    return vnxi_blob_table_set_all(blobs, &blob, 1);
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
