/*
 * For tests of GPU memory between two processes: an agent A of this process,
 * transfers between its blocks and those of an agent B, and this program once
 * more as the other process.
 */
#ifndef GPU_PAIR_H
#define GPU_PAIR_H

#include "agent_fixture.h"
#include "gpu_blocks.h"

#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

static vnx_agent_t *a __attribute__((unused));

/* The driver was used as it should be, and has all memory back. */
static inline void
assert_nothing_shared(void)
{
    assert_int_equal(fake->misuses, 0);
    assert_int_equal(fake->imports, 0);
    assert_int_equal(fake->mappings, 0);
    assert_int_equal(fake->reservations, 0);
    assert_int_equal(fake->handles, 0);
}

/* Of the environment, for both processes. */
static inline void
start_cuda(void)
{
    vnxi_cu_context_t context;

    assert_int_equal(fake_load(FAKE_CUDA), 0);
    setenv("VLLM_NIXL_CUDA_LIBRARY", FAKE_CUDA, 1);
    atomic_store(&fake->fabric, FAKE_CUDA_FABRIC);
    CU_OK(cu.cuInit(0));
    CU_OK(cu.cuDevicePrimaryCtxRetain(&context, 0));
    CU_OK(client.cuCtxSetCurrent(context));
}

/* -- The other process -----------------------------------------------------
 */

/* Read or write all; 0: the other end is gone. */
static inline bool
transact(int fd, void *data, size_t len, bool writes)
{
    for (size_t done = 0; done < len;) {
        ssize_t some =
            writes ? send(fd, (char *)data + done, len - done, MSG_NOSIGNAL)
                   : read(fd, (char *)data + done, len - done);
        if (some < 0 && errno == EINTR) {
            continue;
        }
        if (some <= 0) {
            return false;
        }
        done += (size_t)some;
    }
    return true;
}

/* This program with two arguments: this one, and the descriptor at its end of
 * a socket. */
static inline pid_t
start_program(const char *mode, int *fd_p)
{
    char fd[16];
    int pair[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair),
                     0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int kept = dup(pair[1]);
        snprintf(fd, sizeof fd, "%d", kept);
        execl("/proc/self/exe", "test", mode, fd, (char *)NULL);
        _exit(127);
    }
    close(pair[1]);
    *fd_p = pair[0];
    return pid;
}

/* -- Our memory, transfers -------------------------------------------------
 */

static inline block_t
new_ours(kind_t kind, size_t size)
{
    block_t block = make_block(kind, size);
    vnx_reg_desc_t desc = {.desc = {block.addr, block.size, 0}};
    assert_ok(vnx_agent_register(a, block.mem, &desc, 1, NULL, e));
    return block;
}

static inline void
end_ours(const block_t *block)
{
    vnx_reg_desc_t desc = {.desc = {block->addr, block->size, 0}};
    assert_ok(vnx_agent_deregister(a, block->mem, &desc, 1, NULL, e));
    free_block(block);
}

/* A number from the environment, or this. */
static inline unsigned
number(const char *variable, unsigned usual)
{
    const char *wanted = getenv(variable);
    return wanted != NULL ? (unsigned)atoi(wanted) : usual;
}

/* How often a test repeats itself. */
static inline unsigned
rounds(unsigned usual)
{
    return number("VNX_TEST_ROUNDS", usual);
}

static inline void
wait_ms(void)
{
    struct timespec ms = {0, 1000000};
    nanosleep(&ms, NULL);
}

static inline vnx_status_t
try_make(vnx_op_t op, vnx_mem_t local_mem, const vnx_desc_t *local,
         vnx_mem_t remote_mem, const vnx_desc_t *remote, size_t count,
         vnx_xfer_t **xfer_p, vnx_error_t *error)
{
    vnx_dlist_t *left = NULL, *right = NULL;

    assert_ok(
        vnx_dlist_create(a, "", 0, local_mem, local, count, NULL, &left, e));
    vnx_status_t status = vnx_dlist_create(a, "B", 1, remote_mem, remote,
                                           count, NULL, &right, error);
    if (status == VNX_OK) {
        status = vnx_xfer_create_prepped(a, op, left, all_rows(count), right,
                                         all_rows(count), "done", 4, false,
                                         xfer_p, error);
        vnx_dlist_release(right);
    }
    vnx_dlist_release(left);
    return status;
}

/* Of two whole blocks. */
static inline vnx_xfer_t *
make_ours(vnx_op_t op, const block_t *ours, const block_t *theirs)
{
    uint64_t len = ours->size < theirs->size ? ours->size : theirs->size;
    vnx_desc_t left = {ours->addr, len, 0}, right = {theirs->addr, len, 0};
    vnx_xfer_t *xfer = NULL;

    assert_ok(
        try_make(op, ours->mem, &left, theirs->mem, &right, 1, &xfer, e));
    return xfer;
}

static inline vnx_status_t
end_of(vnx_xfer_t *xfer, vnx_error_t *error)
{
    assert_ok(
        vnx_agent_wait(a, &xfer, 1, VNX_WAIT_NO_CHECK, vnx_test_limit(60), e));
    return vnx_xfer_status(xfer, error);
}

static inline vnx_status_t
run(vnx_xfer_t *xfer, vnx_error_t *error)
{
    vnx_status_t status = vnx_xfer_post(xfer, NULL, 0, error);
    return status == VNX_IN_PROG ? end_of(xfer, error) : status;
}

#endif
