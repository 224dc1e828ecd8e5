/*
 * Descriptors that a forked child must not keep: a socket that a child holds
 * open outlives the parent, and the peer never sees its end.  What is owned
 * here is closed in every forked child before fork() returns there.  (An
 * exec() closes it anyway: such descriptors are opened close-on-exec.)
 *
 * One bit a descriptor, no lock, so that the child can never hang.  Numbers
 * from 2^20 on are not tracked.
 */
#ifndef VNXI_BASE_FORK_FDS_H
#define VNXI_BASE_FORK_FDS_H

#include <stdbool.h>

/* Own `fd` and return it; -1 is handed through. */
int vnxi_fork_fd_own(int fd);

/* Close what vnxi_fork_fd_own() took; -1 is allowed. */
void vnxi_fork_fd_close(int fd);

/*
 * A program that turns itself into a daemon closes every descriptor of the
 * process, ours included, and soon has files of its own under their numbers.
 * An object with descriptors notes the epoch before it opens them, and asks
 * before it wakes its thread, or closes what it has, whether they are still
 * its own.  One system call; it is known from a socket of this file, which
 * goes with the others.
 */
unsigned vnxi_fds_epoch(void);

/* Were the process's descriptors closed since that epoch? */
bool vnxi_fds_lost(unsigned epoch);

#endif
