"""Files that are written through a mapping."""

from __future__ import annotations

import errno
import mmap
import os

_ZEROS = bytes(1 << 16)


def map_file(fd: int, size: int) -> mmap.mmap:
    """Give the file this size and map it; OSError if the disk is full.

    The file gets all its disk space here: the first write to a page that has
    none would end the process by SIGBUS if the disk is full.
    """
    before = os.fstat(fd).st_size
    os.ftruncate(fd, size)
    try:
        _allocate(fd, size)
    except BaseException:
        os.ftruncate(fd, before)  # some file systems keep what there was
        raise
    return mmap.mmap(fd, size)


def _allocate(fd: int, size: int) -> None:
    """Where the file system has no such call, glibc writes to each block;
    other C libraries leave that to the program."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        at = 0
        while at < size:
            at += os.pwrite(fd, _ZEROS[: size - at], at)
