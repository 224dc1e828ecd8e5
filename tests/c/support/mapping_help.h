/* Shared helpers of the tests of shared memory. */
#ifndef VNX_MAPPING_HELP_H
#define VNX_MAPPING_HELP_H

#include "open_fds.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/native/shm/mapping.h"

#define SIZE ((size_t)256 << 10)

static inline vnx_shared_buffer_t *
make_buffer(size_t size)
{
    vnx_shared_buffer_t *buffer = NULL;
    vnx_error_t error;
    assert_int_equal(vnx_shared_buffer_create(size, &buffer, &error), VNX_OK);
    return buffer;
}

static inline int
make_memfd(unsigned flags, size_t size)
{
    int fd = memfd_create("test", flags | MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    return fd;
}

static inline void *
map_fd(int fd, int protection, int flags, off_t offset, size_t size)
{
    void *data = mmap(NULL, size, protection, flags, fd, offset);
    assert_ptr_not_equal(data, MAP_FAILED);
    return data;
}

static inline void *
map_shared(int fd, size_t size)
{
    return map_fd(fd, PROT_READ | PROT_WRITE, MAP_SHARED, 0, size);
}

static inline vnxi_map_info_t
find(const void *data, size_t len)
{
    return vnxi_map_info_find((uintptr_t)data, len);
}

static inline void
assert_not_shared(const void *data, size_t len)
{
    assert_int_equal(find(data, len).fd, -1);
}

#endif
