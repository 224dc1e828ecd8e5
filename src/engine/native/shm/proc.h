/* Reads /proc about a process of this pid namespace. */
#ifndef VNXI_NATIVE_SHM_PROC_H
#define VNXI_NATIVE_SHM_PROC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct vnxi_proc_stat {
    uint64_t start_time; /* clock ticks since boot */
    bool exiting;        /* it no longer runs its program */
} vnxi_proc_stat_t;

/* Returns 0; ESRCH if the process does not exist; or the errno of reading
 * /proc (EMFILE, ...), which says nothing about the process. */
int vnxi_proc_stat(pid_t pid, vnxi_proc_stat_t *stat_p);

#endif
