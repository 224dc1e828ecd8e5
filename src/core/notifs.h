/*
 * The queue of notifications that have arrived and were not taken yet.  Its
 * size in bytes is limited; if it is full, the oldest ones are dropped.
 */
#ifndef VNXI_CORE_NOTIFS_H
#define VNXI_CORE_NOTIFS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <vnx/vnx.h>

#include "base/mutex.h"
#include "engine/engine.h"

typedef struct vnxi_notifs {
    vnxi_mutex_t lock;
    vnx_notif_t *first, *last; /* protected by lock */
    uint64_t bytes, bytes_max; /* protected by lock */
    uint64_t dropped;          /* protected by lock */
    uint64_t received;         /* protected by lock */
    atomic_size_t count;       /* lets an empty queue cost one load */
    atomic_uint empty_polls;
    const char *agent; /* for the log; NULL: none */
    /* Times from the arrival until notifications were taken: their sum, and a
     * histogram. */
    atomic_uint_fast64_t wait_ns, waits[VNXI_PLACES];
} vnxi_notifs_t;

void vnxi_notifs_init(vnxi_notifs_t *notifs, uint64_t bytes_max);
void vnxi_notifs_fini(vnxi_notifs_t *notifs);

/* Append a notification (bytes copied).  If memory runs out, it is dropped,
 * counted and logged. */
void vnxi_notifs_push(vnxi_notifs_t *notifs, const void *sender,
                      size_t sender_len, const void *message,
                      size_t message_len);

/* Take all notifications, oldest first; NULL if empty. */
vnx_notif_t *vnxi_notifs_take(vnxi_notifs_t *notifs);

#endif
