/*
 * The UCX state of an agent from inside; for the files of this folder.
 *
 * context.c has the object itself, which connections, memory and transfers
 * hold.  lifetime.c starts and stops it, and so is the only file that knows
 * all others.
 */
#ifndef VNXI_NATIVE_UCX_CONTEXT_PRIVATE_H
#define VNXI_NATIVE_UCX_CONTEXT_PRIVATE_H

#include "base/mutex.h"
#include "engine/native/ucx/context.h"
#include "engine/native/ucx/library.h"
#include "engine/native/ucx/worker.h"

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

/* GPU memory (gpu.h). */
typedef struct vnxi_ucx_gpu {
    vnxi_mutex_t lock;
    size_t regions;              /* that are mapped; lock */
    vnxi_cuda_context_t context; /* of the workers' threads; lock */
    atomic_size_t withheld;      /* regions without a key for peers */
    atomic_bool has_warned;      /* of such a region */
} vnxi_ucx_gpu_t;

struct vnxi_ucx {
    atomic_uint refs;
    const vnxi_ucx_library_t *library;
    vnxi_ucp_context_t context;
    uint64_t memory_types;
    char *name; /* followed by a NUL */
    size_t name_len;
    uint64_t stall_timeout_ns;
    vnxi_ucx_events_t events;
    unsigned char *address; /* of worker 0 */
    size_t address_len;
    atomic_bool lost;     /* the program closed its descriptors: lifetime.c */
    atomic_uint messages; /* notifications not yet sent by UCX */
    atomic_uint_fast64_t sent_at; /* time of the last one passed to UCX */
    vnxi_mutex_t xfers_lock;      /* transfer.c */
    vnxi_cond_t xfer_ended;
    struct vnxi_ucx_xfer *xfers; /* in flight; xfers_lock, also for: */
    unsigned reporting;          /* transfers in their `done` callback */
    vnxi_ucx_gone_t gone;
    vnxi_ucx_gpu_t gpu;
    struct vnxi_ucx *next; /* list of the process; lifetime.c */
    unsigned worker_count;
    vnxi_ucx_worker_t workers[];
};

/* Create the object and its UCX context, with our settings, those of `config`
 * and those of the environment.  No worker is started. */
vnx_status_t vnxi_ucx_open(const vnxi_ucx_library_t *library,
                           const vnxi_ucx_config_t *config, vnxi_ucx_t **ucx_p,
                           vnx_error_t *error);

/* For an object created from it, which calls vnxi_ucx_release(). */
void vnxi_ucx_retain(vnxi_ucx_t *ucx);

/* Return an error of create_backend with UCX's text. */
vnx_status_t vnxi_ucx_error(const vnxi_ucx_library_t *library,
                            vnxi_ucs_status_t status, const char *what,
                            vnx_error_t *error);

/* Return whether the threads were parked (lifetime.c): they cannot be joined
 * any more, and UCX keeps its resources. */
bool vnxi_ucx_is_parked(const vnxi_ucx_t *ucx);

/* From now on every vnxi_ucx_t of the process is parked. */
void vnxi_ucx_set_all_parked(void);

#endif
