/*
 * The owner's side of copying GPU memory for agents of other processes that
 * cannot map it: a mover for each port.  An asker opens a window, memory that
 * both processes share, and has bytes copied between it and a region
 * (lend_wire.h; window.h is the other side).  The worker of the region copies.
 *
 * Any thread.
 */
#ifndef VNXI_NATIVE_CUDA_MOVE_H
#define VNXI_NATIVE_CUDA_MOVE_H

#include "base/mutex.h"
#include "engine/native/cuda/gpu.h"
#include "engine/native/cuda/lend_wire.h"
#include "engine/native/transport.h"

typedef struct vnxi_cuda_mover {
    const vnxi_port_t *port;
    vnxi_mutex_t lock;
    vnxi_cond_t ended;                /* a move */
    struct vnxi_cuda_shared *windows; /* lock */
    size_t window_count;              /* lock; also closed ones with moves */
    struct vnxi_cuda_move *moves;     /* lock; queued or running */
    bool is_leaving;                  /* lock; no more copy is begun */
} vnxi_cuda_mover_t;

void vnxi_cuda_mover_init(vnxi_cuda_mover_t *mover, const vnxi_port_t *port);
void vnxi_cuda_mover_fini(vnxi_cuda_mover_t *mover);

/* A question of an asker; others than OPEN, MOVE and RETURNED are ignored.
 * Does not block. */
void vnxi_cuda_mover_on_question(vnxi_cuda_mover_t *mover, uint64_t asker,
                                 const vnxi_lend_t *message);

/* As on_asker_gone() of the contract. */
void vnxi_cuda_mover_forget(vnxi_cuda_mover_t *mover, uint64_t asker);

/* The agent is being closed: begin no more copy. */
void vnxi_cuda_mover_leave(vnxi_cuda_mover_t *mover);

/* Wait for copies from and to regions that were deregistered; after
 * vnxi_cuda_mover_leave(), for all. */
void vnxi_cuda_mover_settle(vnxi_cuda_mover_t *mover);

/* The gpu ends, on its thread: its windows are not pinned any more. */
void vnxi_cuda_shared_end(vnxi_cuda_gpu_t *gpu);

#endif
