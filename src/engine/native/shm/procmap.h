/*
 * Which mapping of this process holds an address.
 */
#ifndef VNXI_NATIVE_SHM_PROCMAP_H
#define VNXI_NATIVE_SHM_PROCMAP_H

#include <stdbool.h>
#include <stdint.h>

typedef struct vnxi_procmap {
    uint64_t start, end;
    uint64_t offset; /* in the file, of `start` */
    uint64_t st_dev, st_ino;
    bool shared, readable, writable;
    bool memfd; /* a memfd, by its path */
} vnxi_procmap_t;

/* False where nothing is mapped there, or /proc cannot be read.  One ioctl
 * where the kernel has PROCMAP_QUERY (6.11), else the text is parsed. */
bool vnxi_procmap_find(uint64_t addr, vnxi_procmap_t *map_p);

/* The two ways.  The first returns 0, ENOENT (nothing is mapped there), ENOTTY
 * (the kernel does not know it) or another errno. */
int vnxi_procmap_query(uint64_t addr, vnxi_procmap_t *map_p);
bool vnxi_procmap_parse(uint64_t addr, vnxi_procmap_t *map_p);

#endif
