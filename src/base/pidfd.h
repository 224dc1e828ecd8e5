/*
 * pidfd_open(2) and pidfd_getfd(2), by system call: glibc has functions since
 * 2.36, and the wheels run on glibc 2.28.
 */
#ifndef VNXI_BASE_PIDFD_H
#define VNXI_BASE_PIDFD_H

#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* The numbers are the same on all architectures.  Headers of Linux before 5.3
 * and 5.6 lack them. */
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

/* -1: errno has the cause. */
static inline int
vnxi_pidfd_open(pid_t pid)
{
    return (int)syscall(SYS_pidfd_open, pid, 0u);
}

static inline int
vnxi_pidfd_getfd(int pidfd, int fd)
{
    return (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0u);
}

#endif
