/* The number of descriptors that a test leaves open. */
#ifndef VNX_OPEN_FDS_H
#define VNX_OPEN_FDS_H

#include "vnx_test.h"

#include <dirent.h>

/* To be compared: a few entries of the directory are none. */
static inline size_t
open_fds(void)
{
    size_t count = 0;
    DIR *dir = opendir("/proc/self/fd");

    assert_non_null(dir);
    while (readdir(dir) != NULL) {
        count++;
    }
    closedir(dir);
    return count;
}

#endif
