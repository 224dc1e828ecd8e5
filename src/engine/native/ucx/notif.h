/*
 * Notifications in the format of NIXL's UCX backend: active message 0, whose
 * payload names the sender (docs/wire.md).
 */
#ifndef VNXI_NATIVE_UCX_NOTIF_H
#define VNXI_NATIVE_UCX_NOTIF_H

#include "base/bytes.h"
#include "engine/native/ucx/worker.h"

#define VNXI_UCX_NOTIF_AM 0u

/* Receive the notifications that arrive at this worker.  On its thread. */
vnxi_ucs_status_t vnxi_ucx_notif_listen(vnxi_ucx_worker_t *worker);

/* Write the payload. */
void vnxi_ucx_notif_write(vnxi_writer_t *writer, const void *sender,
                          size_t sender_len, const void *message,
                          size_t message_len);

typedef struct vnxi_ucx_notif {
    const void *sender, *message; /* borrowed from the payload */
    size_t sender_len, message_len;
} vnxi_ucx_notif_t;

/* False: not a notification. */
bool vnxi_ucx_notif_read(const void *payload, size_t len,
                         vnxi_ucx_notif_t *notif_p);

#endif
