/*
 * GPU memory of other processes of this host, mapped here.
 *
 * A *key* is a peer's region.  An *import* is a key mapped for one gpu: the
 * gpu's thread asks the owner for the handles (lend.h is the other side) and
 * maps them when the first transfer needs them.  The import is kept for later
 * transfers.  It ends when the owner recalls it, with the key or the conn, or
 * with the gpu.
 *
 * Threads: functions with a gpu are called on the thread of the gpu, the
 * others on any.
 */
#ifndef VNXI_NATIVE_CUDA_IMPORT_H
#define VNXI_NATIVE_CUDA_IMPORT_H

#include "engine/native/cuda/gpu.h"
#include "engine/native/cuda/lend_wire.h"
#include "engine/native/transport.h"

typedef struct vnxi_cuda_import vnxi_cuda_import_t;
typedef struct vnxi_cuda_refusal vnxi_cuda_refusal_t;

/* A peer's region: the slot of it. */
typedef struct vnxi_cuda_key {
    const vnxi_port_t *port;
    uintptr_t conn_id;
    uint64_t addr, len, dev;
    vnxi_cu_uuid_t uuid; /* of its GPU */
    bool is_lent;        /* its owner hands out handles */
    bool is_moved;       /* its owner copies it for us (window.h) */
    _Atomic(struct vnxi_cuda_worker *)
        worker; /* for transfers with CPU memory;
                   the owner's of the key */
    /* private */
    vnxi_cuda_import_t *imports;
    vnxi_cuda_refusal_t *refusals; /* owned */
} vnxi_cuda_key_t;

/* Part of a peer's region as it is mapped here. */
typedef struct vnxi_cuda_span {
    uint64_t start, end;        /* in the peer */
    uint64_t delta;             /* to the address here, modulo 2^64 */
    const vnxi_cuda_key_t *key; /* not mapped: the region; delta is 0 */
} vnxi_cuda_span_t;

/* Growing array of spans. */
typedef struct vnxi_cuda_spans {
    vnxi_cuda_span_t *spans; /* owned */
    size_t count, room;
} vnxi_cuda_spans_t;

/* Append a span; neighbours that are mapped next to each other become one.
 * False: no memory. */
bool vnxi_cuda_spans_add(vnxi_cuda_spans_t *spans, vnxi_cuda_span_t span);

/* Questions to one owner at a time: an answer can have 64 descriptors, of
 * which a process may have 1024. */
#define VNXI_CUDA_ASKS_MAX 4u

/* A post of a transfer, with numbers of vnxi_cuda_next_number(). */
typedef struct vnxi_cuda_post {
    uint64_t since;    /* it began */
    uint64_t answered; /* the owner has answered something that it waits for,
                          or was asked */
    size_t begun;      /* imports, for this post */
} vnxi_cuda_post_t;

/* Add the spans of a region; `spans` NULL: have it mapped.  VNX_IN_PROG: it is
 * not mapped yet; gpu->wake is called when it may be. */
vnx_status_t vnxi_cuda_import(vnxi_cuda_key_t *key, vnxi_cuda_gpu_t *gpu,
                              vnxi_cuda_post_t *post, vnxi_cuda_spans_t *spans,
                              vnx_error_t *error);

/* Why the region cannot be mapped for the gpu; valid as long as the key.
 * NULL: it can be, as far as is known. */
const char *vnxi_cuda_why_unmappable(const vnxi_cuda_key_t *key,
                                     const vnxi_cuda_gpu_t *gpu);

/* A question to the owners of the regions of a transfer: have they still the
 * memory that is mapped here?  In the list of all from begin to end. */
typedef struct vnxi_cuda_check {
    /* private */
    vnxi_cuda_gpu_t *gpu;   /* NULL: it is not in the list */
    atomic_size_t messages; /* that were not answered yet */
    atomic_bool is_stale;
    uint64_t token;
    const vnxi_port_t *port;
    uintptr_t conn_id;
    struct vnxi_cuda_check *next;
} vnxi_cuda_check_t;

/* Ask about these keys of one conn, which are imported.  gpu->wake is called
 * when the answer has come; if it is that memory is stale, its imports end
 * soon. */
vnx_status_t vnxi_cuda_check_begin(vnxi_cuda_check_t *check,
                                   vnxi_cuda_gpu_t *gpu,
                                   vnxi_cuda_key_t *const *keys, size_t count,
                                   vnx_error_t *error);
/* What the answer is.  VNX_IN_PROG: none so far.  VNX_ERR_MISMATCH, without an
 * error record: stale.  Takes no lock. */
vnx_status_t vnxi_cuda_check_state(const vnxi_cuda_check_t *check);
void vnxi_cuda_check_end(vnxi_cuda_check_t *check);

/* After gpu->wake: map what owners have sent, unmap what was recalled or is
 * not needed any more.  Nothing is running on the gpu, and spans of before are
 * invalid. */
void vnxi_cuda_imports_serve(vnxi_cuda_gpu_t *gpu);

/* The gpu ends: unmap everything. */
void vnxi_cuda_imports_end(vnxi_cuda_gpu_t *gpu);

/* The imports of this conn will end. */
void vnxi_cuda_imports_drop(const vnxi_port_t *port, uintptr_t conn_id);

/* Wait until they have ended, or until the deadline (CLOCK_MONOTONIC, ns). */
void vnxi_cuda_imports_settle(const vnxi_port_t *port, uintptr_t conn_id,
                              uint64_t deadline);

/* A message of an owner; others than LENT, REFUSED, RECALL and CHECKED are
 * ignored.  Returns whether the descriptors were taken over. */
bool vnxi_cuda_imports_on_answer(const vnxi_port_t *port, uintptr_t conn_id,
                                 const vnxi_lend_t *message,
                                 const vnxi_control_t *control);

/* The number of regions of a conn that are mapped. */
size_t vnxi_cuda_imports_count(const vnxi_port_t *port, uintptr_t conn_id);

/* -- Messages to owners ----------------------------------------------------
 */

/* A number for a loan, a window or a token, or for what happens now; never 0,
 * and higher than all before. */
uint64_t vnxi_cuda_next_number(void);

/* VNX_ERR_REMOTE_DISCONNECT: the conn was closed. */
vnx_status_t vnxi_cuda_ask_owner(const vnxi_port_t *port, uintptr_t conn_id,
                                 const vnxi_lend_t *message,
                                 vnx_error_t *error);

/* The status that an owner has sent, if it is one that owners may cause. */
vnx_status_t vnxi_cuda_refused_status(const vnxi_lend_t *message);

/* The imports of the key will end.  No transfer uses the key any more. */
void vnxi_cuda_key_fini(vnxi_cuda_key_t *key);

#endif
