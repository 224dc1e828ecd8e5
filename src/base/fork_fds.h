/*
 * Descriptors that must be closed in forked children.  A socket that a child
 * holds open outlives the parent, so the peer never sees it close.
 * Descriptors owned here are closed in every forked child before fork()
 * returns there.  (exec() closes them anyway: they are opened close-on-exec.)
 *
 * One bit per descriptor and no lock, so that the child cannot hang.  Numbers
 * from 2^20 on are not tracked.
 */
#ifndef VNXI_BASE_FORK_FDS_H
#define VNXI_BASE_FORK_FDS_H

#include <stdbool.h>
#include <stddef.h>

/* Own `fd` and return it; -1 is returned unchanged. */
int vnxi_fork_fd_own(int fd);

/* The caller is about to close this descriptor, owned or not. */
void vnxi_fork_fd_disown(int fd);

/* Close a descriptor owned by vnxi_fork_fd_own(); -1 is allowed. */
void vnxi_fork_fd_close(int fd);

/* The same for `count` of them. */
void vnxi_fork_fds_close(const int *fds, size_t count);

/*
 * A program that turns itself into a daemon closes all descriptors of the
 * process, including ours, and may then open files under the same numbers.  An
 * object that owns descriptors records the epoch before it opens them.  Before
 * it wakes its thread or closes them, it checks that they are still its own.
 * The check is one system call on a socket owned by this file, which was
 * closed with the others.
 */
unsigned vnxi_fds_epoch(void);

/* Return whether the process's descriptors were closed since that epoch. */
bool vnxi_fds_lost(unsigned epoch);

#endif
