#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vnx/vnx.h>

#include "base/error.h"
#include "base/fork.h"
#include "engine/native/shm/mapping.h"

#define OPERATION "vnx_shared_buffer_create"
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

struct vnx_shared_buffer {
    void *data;
    size_t size;
    uint64_t st_dev, st_ino;
    unsigned fork_count;
};

static vnx_status_t
fail(vnx_error_t *error, const char *call, size_t nbytes)
{
    vnx_status_t status = errno == ENOMEM || errno == ENOSPC || errno == EFBIG
                              ? VNX_ERR_NO_MEMORY
                              : VNX_ERR_BACKEND;
    return vnxi_error_set(error, status, OPERATION, "%s for %zu bytes: %s",
                          call, nbytes, vnxi_errno(errno));
}

/* Create and map a sealed memfd.  On an error, *fd_p is the only resource to
 * release. */
static vnx_status_t
buffer_open(vnx_shared_buffer_t *buffer, size_t nbytes, int *fd_p,
            vnx_error_t *error)
{
    struct stat st;
    if (nbytes == 0 || nbytes > INT64_MAX) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, OPERATION,
                              "%zu bytes", nbytes);
    }
    int fd = memfd_create("vnx", MFD_ALLOW_SEALING | MFD_CLOEXEC);
    if (fd < 0) {
        return fail(error, "memfd_create", nbytes);
    }
    *fd_p = fd;
    if (ftruncate(fd, (off_t)nbytes) != 0) {
        return fail(error, "ftruncate", nbytes);
    }
    if (fcntl(fd, F_ADD_SEALS, SEALS) != 0) {
        return fail(error, "sealing", nbytes);
    }
    if (fstat(fd, &st) != 0) {
        return fail(error, "fstat", nbytes);
    }
    void *data = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
        return fail(error, "mmap", nbytes);
    }
    *buffer = (vnx_shared_buffer_t){
        .data = data,
        .size = nbytes,
        .st_dev = st.st_dev,
        .st_ino = st.st_ino,
        .fork_count = vnxi_fork_count(),
    };
    return VNX_OK;
}

vnx_status_t
vnx_shared_buffer_create(size_t nbytes, vnx_shared_buffer_t **out_p,
                         vnx_error_t *error)
{
    int fd = -1;
    vnx_shared_buffer_t *buffer = calloc(1, sizeof *buffer);
    if (buffer == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *buffer);
    }
    vnx_status_t status = buffer_open(buffer, nbytes, &fd, error);
    if (status != VNX_OK) {
        goto err_fd;
    }
    if (!vnxi_memfd_add(fd, buffer->st_dev, buffer->st_ino)) {
        status = vnxi_error_no_memory(error, OPERATION, sizeof *buffer);
        goto err_map;
    }
    *out_p = buffer;
    return VNX_OK;

err_map:
    munmap(buffer->data, buffer->size);
err_fd:
    if (fd >= 0) {
        close(fd);
    }
    free(buffer);
    return status;
}

void *
vnx_shared_buffer_data(const vnx_shared_buffer_t *buffer)
{
    return buffer->data;
}

size_t
vnx_shared_buffer_size(const vnx_shared_buffer_t *buffer)
{
    return buffer->size;
}

void
vnx_shared_buffer_free(vnx_shared_buffer_t *buffer)
{
    if (buffer == NULL || vnxi_fork_crossed(buffer->fork_count)) {
        return;
    }
    munmap(buffer->data, buffer->size);
    vnxi_memfd_drop(buffer->st_dev, buffer->st_ino);
    free(buffer);
}
