/*
 * Finds the mapping of this process that holds an address.
 */
#ifndef VNXI_NATIVE_SHM_PROCMAP_H
#define VNXI_NATIVE_SHM_PROCMAP_H

#include <stdbool.h>
#include <stdint.h>

typedef struct vnxi_proc_vma {
    uint64_t start, end;
    uint64_t offset; /* of `start` in the file */
    uint64_t st_dev, st_ino;
    bool shared, readable, writable;
    bool memfd; /* the path is that of a memfd */
} vnxi_proc_vma_t;

/* False if nothing is mapped at the address, or /proc cannot be read.  One
 * ioctl if the kernel has PROCMAP_QUERY (6.11), else the text is parsed. */
bool vnxi_proc_vma_find(uint64_t addr, vnxi_proc_vma_t *map_p);

/* The two implementations.  The first returns 0, ENOENT (nothing is mapped
 * there), ENOTTY (unknown to the kernel) or another errno. */
int vnxi_proc_vma_query(uint64_t addr, vnxi_proc_vma_t *map_p);
bool vnxi_proc_vma_parse(uint64_t addr, vnxi_proc_vma_t *map_p);

#endif
