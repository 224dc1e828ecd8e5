#include "side_channel/blob.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

vnxi_blob_t *
vnxi_blob_create(const void *data, size_t len)
{
    vnxi_blob_t *blob =
        len <= SIZE_MAX - sizeof *blob ? malloc(sizeof *blob + len) : NULL;
    if (blob == NULL) {
        return NULL;
    }
    atomic_init(&blob->refs, 1);
    /* Where the system gives nothing (it always does), the address will do. */
    if (getrandom(&blob->version, sizeof blob->version, GRND_NONBLOCK) !=
        (ssize_t)sizeof blob->version) {
        blob->version = (uintptr_t)blob;
    }
    blob->len = len;
    if (len > 0) {
        memcpy(blob->data, data, len);
    }
    return blob;
}

vnxi_blob_t *
vnxi_blob_retain(vnxi_blob_t *blob)
{
    atomic_fetch_add_explicit(&blob->refs, 1, memory_order_relaxed);
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
