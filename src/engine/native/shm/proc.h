/*
 * Reads /proc: the state of a process of this pid namespace, and the mappings
 * of this process.
 */
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

/* A mapping of this process (the kernel's "virtual memory area"). */
typedef struct vnxi_proc_vma {
    uint64_t start, end;
    uint64_t offset; /* of `start` in the file */
    uint64_t st_dev, st_ino;
    bool shared, readable, writable;
    bool memfd; /* the path is that of a memfd */
} vnxi_proc_vma_t;

/* Find the mapping that holds an address.  False if nothing is mapped there,
 * or /proc cannot be read.  One ioctl if the kernel has PROCMAP_QUERY (6.11),
 * else the text is parsed. */
bool vnxi_proc_vma_find(uint64_t addr, vnxi_proc_vma_t *vma_p);

/* The two implementations.  The first returns 0, ENOENT (nothing is mapped
 * there), ENOTTY (unknown to the kernel) or another errno. */
int vnxi_proc_vma_query(uint64_t addr, vnxi_proc_vma_t *vma_p);
bool vnxi_proc_vma_parse(uint64_t addr, vnxi_proc_vma_t *vma_p);

#endif
