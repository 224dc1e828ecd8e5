/*
 * Copying between processes through the kernel: process_vm_readv(2) and
 * process_vm_writev(2), up to 256 pieces per call.
 */
#ifndef VNXI_NATIVE_SHM_VM_H
#define VNXI_NATIVE_SHM_VM_H

#include <sys/types.h>

#include "engine/native/plan.h"
#include "engine/native/transport.h"

/* Copy the pieces of a chunk that have this route between this process and
 * `pid`.  Continues after partial results.  Errors: VNX_ERR_REMOTE_DISCONNECT
 * (the process is gone: ESRCH, or EFAULT and `pidfd` reports its end),
 * VNX_ERR_NOT_ALLOWED (EPERM), VNX_ERR_BACKEND (EFAULT: the cause names the
 * side and the address of the piece, "memory was unmapped").  `stop` is
 * checked between calls: VNX_ERR_CANCELED if it is set. */
typedef struct vnxi_vm_target {
    pid_t pid;
    int pidfd;
    uint32_t route; /* of the pieces to copy */
    const atomic_bool *stop;
    const char *operation;
} vnxi_vm_target_t;

vnx_status_t vnxi_vm_chunk(const vnxi_vm_target_t *target,
                           const vnxi_plan_t *plan, size_t chunk, vnx_op_t op,
                           vnx_error_t *error);

/* The same for rows; target->route is not used. */
vnx_status_t vnxi_vm_rows(const vnxi_vm_target_t *target,
                          const vnxi_copy_row_t *rows, size_t count,
                          vnx_op_t op, vnx_error_t *error);

/* Read `len` bytes (the nonce) at `addr` of the process.  Returns 0 or an
 * errno. */
int vnxi_vm_peek(pid_t pid, uint64_t addr, void *target, size_t len);

#endif
