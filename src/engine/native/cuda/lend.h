/*
 * The owner's side of sharing GPU memory with other processes of this host: a
 * lender for each port.  An agent that has loaded our metadata asks for the
 * handles of a region (lend_wire.h).  What it got is a *loan*: it may map the
 * memory and copy from and to it until it gives the loan back, or is gone.
 *
 * Its mapping keeps the memory allocated, and cudaFree() of memory that
 * another process has mapped is undefined.  So a deregistration recalls the
 * loans of its region and waits until they were given back, 2 s at most.
 *
 * Any thread.
 */
#ifndef VNXI_NATIVE_CUDA_LEND_H
#define VNXI_NATIVE_CUDA_LEND_H

#include "base/mutex.h"
#include "base/name_map.h"
#include "engine/native/cuda/lend_wire.h"
#include "engine/native/cuda/worker.h"
#include "engine/native/transport.h"

typedef struct vnxi_cuda_loan vnxi_cuda_loan_t;

typedef struct vnxi_cuda_lender {
    const vnxi_port_t *port;
    vnxi_mutex_t lock;
    vnxi_cond_t given_back;
    vnxi_cuda_loan_t *loans;      /* owned; lock */
    vnxi_name_map_t by_name;      /* the same loans; lock */
    vnxi_name_map_t askers;       /* those that have any; lock */
    struct vnxi_cuda_task *tasks; /* lock; queued or running */
    bool is_leaving;              /* lock; nothing more is lent */
} vnxi_cuda_lender_t;

void vnxi_cuda_lender_init(vnxi_cuda_lender_t *lender,
                           const vnxi_port_t *port);
void vnxi_cuda_lender_fini(vnxi_cuda_lender_t *lender);

/* A question of an asker; others than ASK, CHECK and RETURNED are ignored.
 * Does not block. */
void vnxi_cuda_lender_on_question(vnxi_cuda_lender_t *lender, uint64_t asker,
                                  const vnxi_lend_t *message);

/* As on_asker_gone() of the contract. */
void vnxi_cuda_lender_forget(vnxi_cuda_lender_t *lender, uint64_t asker);

/* Recall the loans of a region that was deregistered; NULL: of all, for good.
 */
void vnxi_cuda_lender_recall(vnxi_cuda_lender_t *lender,
                             const vnxi_region_t *region);

/* Wait until no handle of a deregistered region is being exported, and the
 * recalled loans were given back.  Those that are not, 2 s
 * after the recall, are given up, with a warning. */
void vnxi_cuda_lender_settle(vnxi_cuda_lender_t *lender);

/* Send an answer.  The descriptors are closed, also after an error.  An asker
 * that cannot be reached is gone, and its loans and windows end with it. */
vnx_status_t vnxi_cuda_answer(const vnxi_port_t *port, uint64_t asker,
                              const vnxi_lend_t *message, int *fds,
                              size_t fd_count, vnx_error_t *error);

/* The registered region that a question names: a reference; NULL: there is
 * none. */
vnxi_region_t *vnxi_cuda_asked_region(const vnxi_port_t *port,
                                      const vnxi_lend_t *message);

/* Can allocations with this answer of the driver be lent? */
bool vnxi_cuda_can_lend(uint64_t is_legacy, uint64_t handle_types);

/* The current number of loans. */
size_t vnxi_cuda_lender_count(vnxi_cuda_lender_t *lender);

#endif
