/*
 * The memfds of this process that peers may map.  All regions in a memfd share
 * one descriptor, so that ten thousand regions cost one.  Process-wide; a
 * forked child starts with none.
 */
#ifndef VNXI_NATIVE_SHM_MEMFD_H
#define VNXI_NATIVE_SHM_MEMFD_H

#include <stdbool.h>
#include <stdint.h>

/* Check whether peers can map this descriptor's file safely: memory of tmpfs
 * or memfd, open for reading and writing, sealed against shrinking but not
 * against writing.  Returns NULL if so, else the reason.  `seal`: seal it
 * first if it accepts seals. */
const char *vnxi_memfd_refusal(int fd, bool seal);

/* Take over a descriptor, with one use.  False: no memory, not taken over. */
bool vnxi_memfd_add(int fd, uint64_t st_dev, uint64_t st_ino);

/* Get a descriptor of this file and add one use: the known one, else a
 * duplicate of any descriptor open in this process. -1: none that peers may
 * map.  Checks at most VNXI_MEMFD_SCAN_MAX descriptors. */
#define VNXI_MEMFD_SCAN_MAX 4096
int vnxi_memfd_hold(uint64_t st_dev, uint64_t st_ino);

/* Drop one use; the last one closes the descriptor. */
void vnxi_memfd_drop(uint64_t st_dev, uint64_t st_ino);

#endif
