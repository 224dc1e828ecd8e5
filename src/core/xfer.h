/*
 * A transfer, shared by its files.
 */
#ifndef VNXI_CORE_XFER_H
#define VNXI_CORE_XFER_H

#include "core/agent.h"
#include "core/deadline.h"

struct vnx_xfer {
    atomic_uint refs; /* users, and the engine while POSTED */
    atomic_uint state;
    vnx_agent_t *agent; /* retained */
    vnxi_exfer_t *exfer;
    vnx_op_t op;
    vnxi_xfer_facts_t facts;

    vnxi_deadline_t deadline; /* armed if the post has a timeout */
    uint64_t timeout_ns;      /* of the post; VNX_FOREVER: none */
    bool timed_out; /* stopped by the deadline; protected by its lock */

    unsigned char *notif; /* NULL: none; changed while READY and by the
                             poster */
    size_t notif_len;

    atomic_uint_fast64_t start_ns, post_ns, end_ns; /* 0: not yet */
    vnx_error_t *error; /* protected by agent->error_lock */
};

/* An owned copy of a notification; NULL: no memory. */
unsigned char *vnxi_xfer_copy_notif(const void *notif, size_t len);

/* Deadline callback: ask the engine to stop the transfer. */
void vnxi_xfer_deadline_passed(vnxi_deadline_t *deadline);

#endif
