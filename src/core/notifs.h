/*
 * The queue of notifications that have come and were not taken yet: bounded
 * in bytes, the oldest give way.
 */
#ifndef VNXI_CORE_NOTIFS_H
#define VNXI_CORE_NOTIFS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <vnx/vnx.h>

#include "base/mutex.h"

typedef struct vnxi_notifs {
    vnxi_mutex_t lock;
    vnx_notif_t *first, *last; /* protected by lock */
    uint64_t bytes, bytes_max; /* protected by lock */
    uint64_t dropped;          /* protected by lock */
    uint64_t received;         /* protected by lock */
    atomic_size_t count;       /* an empty queue is one load */
    atomic_uint empty_polls;
} vnxi_notifs_t;

void vnxi_notifs_init(vnxi_notifs_t *notifs, uint64_t bytes_max);
void vnxi_notifs_fini(vnxi_notifs_t *notifs);

/* Append (bytes copied).  Where memory runs out the notification is dropped,
 * counted and logged. */
void vnxi_notifs_push(vnxi_notifs_t *notifs, const void *sender,
                      size_t sender_len, const void *message,
                      size_t message_len);

/* All of them, oldest first; NULL for none. */
vnx_notif_t *vnxi_notifs_take(vnxi_notifs_t *notifs);

#endif
