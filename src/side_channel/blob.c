#include "side_channel/blob.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "side_channel/proof.h"

static bool
add_digest(vnxi_blob_t *blob)
{
#ifdef VNXI_SIDE_CHANNEL_TLS
    return vnxi_proof_digest(blob->data, blob->len, blob->digest);
#else
    (void)blob;
    return true;
#endif
}

vnxi_blob_t *
vnxi_blob_create(const void *data, size_t len, bool digest)
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
    if (digest && !add_digest(blob)) {
        free(blob);
        return NULL;
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
