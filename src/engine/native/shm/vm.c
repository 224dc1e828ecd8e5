/*
 * One call copies up to 256 pairs of pieces.  The kernel stops at the first
 * byte that it cannot copy and returns how much it copied.  So a short count
 * is continued from there, and the next call fails on the offending piece.  A
 * call that fails as a whole (an address that no process can have) is repeated
 * piece by piece to find the offending one.
 */
#include "engine/native/shm/vm.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/native/shm/ptrace.h"

#define BATCH_MAX 256u

/* A process that is being killed loses its memory before its pidfd becomes
 * readable. */
#define DEATH_WAIT_MS 50

typedef struct batch {
    size_t count;
    struct iovec local[BATCH_MAX], remote[BATCH_MAX]; /* equal lengths */
} batch_t;

static void
batch_add(batch_t *batch, uint64_t local, uint64_t remote, uint64_t len)
{
    batch->local[batch->count] = (struct iovec){
        .iov_base = (void *)(uintptr_t)local,
        .iov_len = len,
    };
    batch->remote[batch->count] = (struct iovec){
        .iov_base = (void *)(uintptr_t)remote,
        .iov_len = len,
    };
    batch->count++;
}

static void
batch_fill(const vnxi_vm_target_t *target, batch_t *batch, vnxi_walk_t *walk)
{
    vnxi_piece_t piece;

    batch->count = 0;
    while (batch->count < BATCH_MAX && vnxi_walk_next(walk, &piece)) {
        if (piece.route == target->route && piece.len > 0) {
            batch_add(batch, piece.local, piece.remote, piece.len);
        }
    }
}

static void
iovec_advance(struct iovec *piece, size_t len)
{
    piece->iov_base = (char *)piece->iov_base + len;
    piece->iov_len -= len;
}

/* Find the first piece that is not finished after `done` bytes from `at` on,
 * and cut off its finished part. */
static size_t
batch_advance(batch_t *batch, size_t at, size_t done)
{
    while (at < batch->count && done >= batch->local[at].iov_len) {
        done -= batch->local[at].iov_len;
        at++;
    }
    if (done > 0 && at < batch->count) {
        iovec_advance(&batch->local[at], done);
        iovec_advance(&batch->remote[at], done);
    }
    return at;
}

static bool
target_ended(const vnxi_vm_target_t *target, int timeout_ms)
{
    struct pollfd ended = {.fd = target->pidfd, .events = POLLIN};
    return target->pidfd >= 0 && poll(&ended, 1, timeout_ms) == 1;
}

static vnx_status_t
error_ended(const vnxi_vm_target_t *target, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, target->operation,
                          "process %d ended", (int)target->pid);
}

static vnx_status_t
error_unmapped(const vnxi_vm_target_t *target, const char *side,
               const struct iovec *piece, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_BACKEND, target->operation,
                          "%s at 0x%" PRIxPTR
                          " (%zu bytes left of the piece): "
                          "memory was unmapped or is protected",
                          side, (uintptr_t)piece->iov_base, piece->iov_len);
}

/*
 * Find out which side faulted.  The side that is read from can be probed
 * without harm: its first byte is readable or not.
 */
static vnx_status_t
error_fault(const vnxi_vm_target_t *target, const batch_t *batch, size_t at,
            vnx_op_t op, vnx_error_t *error)
{
    const struct iovec *local = &batch->local[at];
    const struct iovec *remote = &batch->remote[at];
    bool read = op == VNX_OP_READ;
    char byte;
    int probe = vnxi_vm_peek(read ? target->pid : getpid(),
                             (uintptr_t)(read ? remote : local)->iov_base,
                             &byte, sizeof byte);

    if (read ? probe == 0 : probe == EFAULT) {
        return error_unmapped(target, "local memory", local, error);
    }
    if (probe == ESRCH || target_ended(target, DEATH_WAIT_MS)) {
        return error_ended(target, error);
    }
    return error_unmapped(target, "memory of the peer", remote, error);
}

static vnx_status_t
error_copy(const vnxi_vm_target_t *target, int cause, vnx_error_t *error)
{
    switch (cause) {
    case ESRCH:
        return error_ended(target, error);
    case EPERM:
        if (target_ended(target, 0)) {
            return error_ended(target, error);
        }
        return vnxi_ptrace_error(target->pid, target->operation, error);
    case ENOMEM:
        return vnxi_error_set(error, VNX_ERR_NO_MEMORY, target->operation,
                              "the kernel has no memory for copying");
    default:
        return vnxi_error_set(
            error, VNX_ERR_BACKEND, target->operation,
            "copying between this process and process %d failed: %s",
            (int)target->pid, vnxi_errno(cause));
    }
}

static ssize_t
batch_call(const vnxi_vm_target_t *target, const batch_t *batch, size_t at,
           size_t count, vnx_op_t op)
{
    if (op == VNX_OP_READ) {
        return process_vm_readv(target->pid, &batch->local[at], count,
                                &batch->remote[at], count, 0);
    }
    return process_vm_writev(target->pid, &batch->local[at], count,
                             &batch->remote[at], count, 0);
}

static vnx_status_t
batch_copy(const vnxi_vm_target_t *target, batch_t *batch, vnx_op_t op,
           vnx_error_t *error)
{
    size_t count_max = BATCH_MAX;

    for (size_t at = 0; at < batch->count;) {
        if (target->stop != NULL &&
            atomic_load_explicit(target->stop, memory_order_relaxed)) {
            return vnxi_error_set(error, VNX_ERR_CANCELED, target->operation,
                                  "the transfer was cancelled");
        }
        size_t count = batch->count - at;
        count = count < count_max ? count : count_max;
        ssize_t done = batch_call(target, batch, at, count, op);
        if (done > 0) {
            at = batch_advance(batch, at, (size_t)done);
            continue;
        }
        int cause = done < 0 ? errno : EFAULT;
        if (cause != EFAULT) {
            return error_copy(target, cause, error);
        }
        if (count == 1) {
            return error_fault(target, batch, at, op, error);
        }
        count_max = 1;
    }
    return VNX_OK;
}

vnx_status_t
vnxi_vm_chunk(const vnxi_vm_target_t *target, const vnxi_plan_t *plan,
              size_t chunk, vnx_op_t op, vnx_error_t *error)
{
    vnxi_walk_t walk = vnxi_plan_walk(plan, chunk);
    batch_t batch;

    for (;;) {
        batch_fill(target, &batch, &walk);
        if (batch.count == 0) {
            return VNX_OK;
        }
        vnx_status_t status = batch_copy(target, &batch, op, error);
        if (status != VNX_OK) {
            return status;
        }
    }
}

vnx_status_t
vnxi_vm_rows(const vnxi_vm_target_t *target, const vnxi_copy_row_t *rows,
             size_t count, vnx_op_t op, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    batch_t batch;

    for (size_t at = 0; status == VNX_OK && at < count;) {
        batch.count = 0;
        while (batch.count < BATCH_MAX && at < count) {
            batch_add(&batch, rows[at].local, rows[at].remote, rows[at].len);
            at++;
        }
        status = batch_copy(target, &batch, op, error);
    }
    return status;
}

int
vnxi_vm_peek(pid_t pid, uint64_t addr, void *target, size_t len)
{
    struct iovec local = {.iov_base = target, .iov_len = len};
    struct iovec remote = {
        .iov_base = (void *)(uintptr_t)addr,
        .iov_len = len,
    };
    ssize_t done = process_vm_readv(pid, &local, 1, &remote, 1, 0);

    if (done < 0) {
        return errno;
    }
    return (size_t)done == len ? 0 : EFAULT;
}
