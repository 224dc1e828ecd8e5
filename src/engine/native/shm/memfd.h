/*
 * The memfds of this process that peers may map: one descriptor each, however
 * many regions lie in it, so that ten thousand regions of one memfd cost one
 * descriptor.  Process-wide; a forked child starts with none.
 */
#ifndef VNXI_NATIVE_SHM_MEMFD_H
#define VNXI_NATIVE_SHM_MEMFD_H

#include <stdbool.h>
#include <stdint.h>

/* May peers map this descriptor's file without a danger to them: memory of
 * tmpfs or memfd, open for reading and writing, sealed against shrinking (not
 * against writing)?  NULL: yes; else the reason.  `seal`: seal it first if it
 * takes seals. */
const char *vnxi_memfd_refusal(int fd, bool seal);

/* Take over a descriptor, with one use.  False: no memory, nothing is taken.
 */
bool vnxi_memfd_add(int fd, uint64_t st_dev, uint64_t st_ino);

/* A descriptor of this file, one use more: the one that is known, else a
 * duplicate of any that this process has open.  -1: there is none that peers
 * may map.  Looks at VNXI_MEMFD_SCAN_MAX descriptors at most. */
#define VNXI_MEMFD_SCAN_MAX 4096
int vnxi_memfd_hold(uint64_t st_dev, uint64_t st_ino);

/* Give up one use; closes the descriptor with the last. */
void vnxi_memfd_drop(uint64_t st_dev, uint64_t st_ino);

#endif
