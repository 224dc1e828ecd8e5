/*
 * Bytes that a socket has not taken yet, in order.  Pure; protected by the
 * link's send lock.
 */
#ifndef VNXI_NATIVE_SHM_LINK_QUEUE_H
#define VNXI_NATIVE_SHM_LINK_QUEUE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct vnxi_link_block vnxi_link_block_t;

typedef struct vnxi_link_queue {
    vnxi_link_block_t *head, *tail; /* owned */
    size_t bytes;                   /* not yet consumed */
} vnxi_link_queue_t;                /* all zeros: empty */

/* Append a copy of the data.  False: no memory, and nothing was added. */
bool vnxi_link_queue_add(vnxi_link_queue_t *queue, const void *data,
                         size_t len);

/* The longest contiguous piece at the front, in place.  The queue must not be
 * empty. */
const void *vnxi_link_queue_front(const vnxi_link_queue_t *queue,
                                  size_t *len_p);

/* Remove `len` bytes of that piece. */
void vnxi_link_queue_consume(vnxi_link_queue_t *queue, size_t len);
void vnxi_link_queue_clear(vnxi_link_queue_t *queue);

#endif
