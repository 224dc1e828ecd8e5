/*
 * Addresses of workers whose process has ended.
 *
 * UCX finds this out within ucp_ep_create(), when a transport for the same
 * host looks for the process.  It then keeps the sockets that it opened for
 * other transports until the worker ends (seen in 1.22 and 1.23).  A program
 * that waits for an agent may load the metadata of an ended one again and
 * again, so UCX is asked only once.  An address belongs to one worker for
 * good.
 *
 * The most recent addresses are kept; a new one replaces the oldest.  Any
 * thread.
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
    unsigned next; /* index to replace next */
} vnxi_ucx_gone_t;

void vnxi_ucx_gone_init(vnxi_ucx_gone_t *gone);
void vnxi_ucx_gone_fini(vnxi_ucx_gone_t *gone);

bool vnxi_ucx_gone_has(vnxi_ucx_gone_t *gone, const void *address, size_t len);

/* Add a copy of the address; without memory for the copy, it is not kept. */
void vnxi_ucx_gone_add(vnxi_ucx_gone_t *gone, const void *address, size_t len);

#endif
