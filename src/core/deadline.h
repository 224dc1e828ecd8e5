/*
 * Deadlines of transfers: one thread of the process, started by the first of
 * them, calls those whose time has come.
 */
#ifndef VNXI_CORE_DEADLINE_H
#define VNXI_CORE_DEADLINE_H

#include <vnx/vnx.h>

/* Embedded in what it is about; zeroed while not armed. */
typedef struct vnxi_deadline {
    /* Called on the thread under its lock: it does not block, and calls
     * nothing of this file.  Called again every few milliseconds until the
     * deadline is disarmed. */
    void (*passed)(struct vnxi_deadline *deadline);
    uint64_t due_ns; /* vnxi_clock_ns(); of this file, as below */
    struct vnxi_deadline *prev, *next;
} vnxi_deadline_t;

/* Call `passed` from `due_ns` on.  VNX_ERR_NO_MEMORY: the thread could not be
 * started. */
vnx_status_t vnxi_deadline_arm(vnxi_deadline_t *deadline, uint64_t due_ns,
                               vnx_error_t *error);

/* `passed` is not running when this has returned, and will not. */
void vnxi_deadline_disarm(vnxi_deadline_t *deadline);

#endif
