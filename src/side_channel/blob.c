#include "side_channel/blob.h"

#include <stdlib.h>
#include <string.h>

#include "side_channel/frame.h"

vnxi_blob_t *
vnxi_blob_create(const void *data, uint32_t len)
{
    size_t whole = (size_t)len + VNXI_FRAME_HEADER;
    vnxi_blob_t *blob = malloc(sizeof *blob + whole);
    if (blob == NULL) {
        return NULL;
    }
    atomic_init(&blob->refs, 1);
    blob->len = whole;
    vnxi_frame_encode_header(len, blob->frame);
    if (len > 0) {
        memcpy(blob->frame + VNXI_FRAME_HEADER, data, len);
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
