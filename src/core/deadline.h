/*
 * Deadlines of transfers.  One thread per process, started by the first
 * deadline, calls those that are due.
 */
#ifndef VNXI_CORE_DEADLINE_H
#define VNXI_CORE_DEADLINE_H

#include <vnx/vnx.h>

/* Embedded in its owner; zeroed while not armed. */
typedef struct vnxi_deadline {
    /* Called on the thread, under the lock of the deadlines.  It must not
     * block or call a function of this file.  It is called again every few
     * milliseconds until the deadline is disarmed. */
    void (*passed)(struct vnxi_deadline *deadline);
    uint64_t due_ns; /* vnxi_clock_ns() scale; private, as below */
    struct vnxi_deadline *prev, *next;
} vnxi_deadline_t;

/* Call `passed` from `due_ns` on.  VNX_ERR_NO_MEMORY: the thread could not be
 * started. */
vnx_status_t vnxi_deadline_arm(vnxi_deadline_t *deadline, uint64_t due_ns,
                               vnx_error_t *error);

/* When this returns, `passed` is not running and will not be called again. */
void vnxi_deadline_disarm(vnxi_deadline_t *deadline);

#endif
