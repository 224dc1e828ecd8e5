/*
 * Bare loops: what the machine can do without an agent.  Measurements are
 * compared with them.  Python calls these functions through ctypes
 * (vllm_nixl/_bench/bare.py).
 *
 * Errors: NULL or -1, and errno.
 */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <stdint.h>
#include <time.h>

#define BARE_API __attribute__((visibility("default")))

/* Where a pair of blocks begins, in bytes from the start of each memory. */
typedef struct vnx_bare_pair {
    uint64_t local, remote;
} vnx_bare_pair_t;

typedef struct vnx_bare_plan {
    const vnx_bare_pair_t *pairs;
    uint64_t count; /* of pairs */
    uint64_t block; /* bytes; a multiple of 128 */
    uint64_t batch; /* pairs that a pass copies, at most `count` */
    uint64_t threads;
    uint64_t write; /* 0: from the other process to this one */
    double seconds; /* no further pass begins after that time; 0: no limit */
} vnx_bare_plan_t;

typedef struct vnx_bare vnx_bare_t;

/*
 * Two memories of `size` bytes: one of this process, and one of a child that
 * has touched every page and then sleeps.  If `shared`, the child's memory is
 * a mapping that both have, and is copied with non-temporal stores; otherwise
 * process_vm_readv and process_vm_writev copy, 256 pieces a call.
 */
BARE_API vnx_bare_t *vnx_bare_open(uint64_t size, int shared);

/* End the child and free both memories. */
BARE_API void vnx_bare_close(vnx_bare_t *bare);

/*
 * Copy batch after batch, from the first pair on and again, until `room`
 * passes are done or the time is over; at least one pass.  Returns the number
 * of passes, and their seconds in `taken`.
 */
BARE_API int64_t vnx_bare_copy(vnx_bare_t *bare, const vnx_bare_plan_t *plan,
                               double *taken, int64_t room);

/*
 * Wake a sleeping thread, `passes` times.  The thread is busy for `busy_us`
 * after each.  The time is what the call that wakes it costs its caller.
 */
BARE_API int64_t vnx_bare_wake(double busy_us, double *taken, int64_t passes);

/*
 * Another process writes to a TCP connection after a pause, `passes` times.
 * A thread that sleeps on the connection reads the message and wakes this
 * thread by an eventfd.  The time is that from the write until this thread
 * runs.  A message takes this way to a sleeping program if a library's thread
 * owns the connection.
 */
BARE_API int64_t vnx_bare_deliver(unsigned pause_us, double *taken,
                                  int64_t passes);

static inline double
bare_seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

#endif
