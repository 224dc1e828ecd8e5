/* What /proc tells of a process of this pid namespace. */
#ifndef VNXI_NATIVE_SHM_PROC_H
#define VNXI_NATIVE_SHM_PROC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct vnxi_proc_stat {
    uint64_t start_time; /* clock ticks since boot */
    bool exiting;        /* it runs no more of its program */
} vnxi_proc_stat_t;

/* 0, ESRCH: there is no such process, or why /proc cannot be read (EMFILE,
 * ...), which says nothing of the process. */
int vnxi_proc_stat(pid_t pid, vnxi_proc_stat_t *stat_p);

#endif
