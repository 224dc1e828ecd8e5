/*
 * Time: a monotonic clock for deadlines and durations, the wall clock for
 * telemetry.  Deadlines are times of the monotonic clock in nanoseconds;
 * UINT64_MAX means never.
 */
#ifndef VNXI_BASE_CLOCK_H
#define VNXI_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t
vnxi_clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline uint64_t
vnxi_clock_wall_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000u + (uint64_t)ts.tv_nsec / 1000u;
}

/* The time `timeout_ns` from now; saturates. */
static inline uint64_t
vnxi_clock_deadline(uint64_t timeout_ns)
{
    uint64_t now = vnxi_clock_ns();
    return timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
}

static inline struct timespec
vnxi_clock_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000u),
                             .tv_nsec = (long)(ns % 1000000000u)};
}

#endif
