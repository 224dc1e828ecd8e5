/*
 * Addresses of workers whose process has ended.
 *
 * UCX finds that out within ucp_ep_create(), where a transport within the host
 * looks for the process, and then keeps the sockets that it has opened for
 * other transports until the worker ends (seen in 1.22 and 1.23).  Metadata of
 * an agent that has ended may be loaded again and again, by somebody who waits
 * for it: so UCX is asked once.  An address names one worker for good.
 *
 * The last ones are known; the oldest makes room.  Any thread.
 */
#ifndef VNXI_NATIVE_UCX_GONE_H
#define VNXI_NATIVE_UCX_GONE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/mutex.h"

#define VNXI_UCX_GONE_MAX 64u
#define VNXI_UCX_GONE_ADDRESS_MAX 4096u /* longer ones are not kept */

typedef struct vnxi_ucx_gone {
    vnxi_mutex_t lock;
    struct {
        unsigned char *bytes; /* owned; NULL: none */
        size_t len;
    } known[VNXI_UCX_GONE_MAX];
    unsigned next; /* to be replaced */
} vnxi_ucx_gone_t;

void vnxi_ucx_gone_init(vnxi_ucx_gone_t *gone);
void vnxi_ucx_gone_fini(vnxi_ucx_gone_t *gone);

bool vnxi_ucx_gone_has(vnxi_ucx_gone_t *gone, const void *address, size_t len);

/* Copied; where there is no memory for it, it is not kept. */
void vnxi_ucx_gone_add(vnxi_ucx_gone_t *gone, const void *address, size_t len);

#endif
