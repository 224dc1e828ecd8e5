/*
 * GPU memory of other processes that cannot be mapped here: its owner copies
 * it.  A *window* is memory that this process and the owner share (move.h is
 * the other side).  It has two *halves*: while the owner copies between one
 * and its GPU, this process copies between the other and its own memory.
 *
 * A window belongs to a conn and a gpu.  It is opened for the first transfer
 * that needs it, and ends with the conn or the gpu.
 *
 * Threads: functions with a gpu or a half are called on the thread of the gpu,
 * the others on any.
 */
#ifndef VNXI_NATIVE_CUDA_WINDOW_H
#define VNXI_NATIVE_CUDA_WINDOW_H

#include "engine/native/cuda/import.h"
#include "engine/native/cuda/lend_wire.h"

/* Bytes that the owner copies. */
typedef struct vnxi_cuda_window_row {
    uint64_t local, remote; /* addresses in this process and in the owner's */
    uint32_t offset, len;   /* in the half */
    const vnxi_cuda_key_t *key; /* the owner's region; outlives the copy */
} vnxi_cuda_window_row_t;

typedef struct vnxi_cuda_half {
    /* Set by the user, before vnxi_cuda_half_send(). */
    vnxi_cuda_window_row_t rows[VNXI_LEND_ROWS_MAX];
    uint32_t count;
    unsigned char *bytes; /* VNXI_WINDOW_HALF_BYTES */
    bool is_pinned;       /* of the gpu; the kernel's address of `bytes` is */
    uint64_t delta;       /* so much higher, modulo 2^64 */
    vnx_op_t op;          /* as sent */
    /* The owner's answer. */
    vnx_status_t status;
    vnx_error_t error;
    /* private */
    struct vnxi_cuda_window *window;
    void *user; /* NULL: the half is free, or was abandoned */
    unsigned state;
    uint64_t token;
    unsigned messages; /* that were not answered yet */
} vnxi_cuda_half_t;

/* Get a free half of the window to the owner of this key, for a post that
 * began at `since` (vnxi_cuda_next_number()).  VNX_IN_PROG: none is free;
 * gpu->wake_for_windows is called when one may be.  Errors: the owner does not
 * copy.  `why` (copied) it has to, for describe(). */
vnx_status_t vnxi_cuda_half_get(const vnxi_cuda_key_t *key,
                                vnxi_cuda_gpu_t *gpu, uint64_t since,
                                const char *why, vnxi_cuda_half_t **half_p,
                                vnx_error_t *error);

/* Give a half back that was not sent. */
void vnxi_cuda_half_free(vnxi_cuda_half_t *half);

/* Have the owner copy the rows: VNX_OP_READ from its memory.  The half is
 * given to back() once (below), unless there was an error, after which it is
 * free. */
vnx_status_t vnxi_cuda_half_send(vnxi_cuda_half_t *half, vnx_op_t op,
                                 void *user, vnx_error_t *error);

/* Call off what was sent for this user; the owner copies nothing more, except
 * what it has begun.  With `waits`, halves that it writes to its memory still
 * come back; without, no half does, and their window ends.  Returns the number
 * of halves that do not come back. */
unsigned vnxi_cuda_halves_abandon(const vnxi_cuda_gpu_t *gpu, const void *user,
                                  bool waits);

/* After gpu->wake_for_windows: map the windows that were opened, end those
 * that are not needed, and call back() for halves that the owner has answered.
 * They are free after that. */
void vnxi_cuda_windows_serve(vnxi_cuda_gpu_t *gpu,
                             void (*back)(void *user, vnxi_cuda_half_t *half));

/* The gpu ends; nothing that was sent is in flight. */
void vnxi_cuda_windows_end(vnxi_cuda_gpu_t *gpu);

/* The windows of this conn will end, as soon as the owner writes nothing more
 * to its memory for us; if it is gone, at once. */
void vnxi_cuda_windows_drop(const vnxi_port_t *port, uintptr_t conn_id,
                            bool is_gone);

/* Wait until they have ended; after the deadline (CLOCK_MONOTONIC, ns) they
 * are told to end at once. */
void vnxi_cuda_windows_settle(const vnxi_port_t *port, uintptr_t conn_id,
                              uint64_t deadline);

/* An OPENED or MOVED of an owner.  Returns whether the descriptor was taken
 * over. */
bool vnxi_cuda_windows_on_answer(const vnxi_port_t *port, uintptr_t conn_id,
                                 const vnxi_lend_t *message,
                                 const vnxi_control_t *control);

/* Append members of a JSON object: the number of windows of a conn, and why
 * there is one; nothing if there is none. */
void vnxi_cuda_windows_describe(const vnxi_port_t *port, uintptr_t conn_id,
                                vnxi_writer_t *out);

#endif
