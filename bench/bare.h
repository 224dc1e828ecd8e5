/*
 * Helpers of the bare programs.
 */
#ifndef BENCH_BARE_H
#define BENCH_BARE_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline void
fail(const char *what)
{
    perror(what);
    exit(1);
}

static inline double
seconds_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

#endif
