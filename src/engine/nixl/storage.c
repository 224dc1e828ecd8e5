/*
 * Files.  Their backends report that a transfer failed, but not where.  So the
 * files are examined after a failure, in the order of the rows.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/nixl/xfer.h"
#include "engine/parts/list_block.h"

#define PATH_SHOWN 200

/* -- Registering -----------------------------------------------------------
 */

static vnx_status_t
no_file(const vnx_reg_desc_t *row, size_t i, vnx_error_t *error)
{
    char path[PATH_SHOWN + 1] = "";
    size_t len = row->meta_len < PATH_SHOWN ? row->meta_len : PATH_SHOWN;
    struct stat found;

    memcpy(path, len > 0 ? row->meta : "", len);
    path[len] = '\0';
    bool is_missing =
        path[0] != '\0' && stat(path, &found) != 0 && errno == ENOENT;
    vnxi_error_set(error, VNX_ERR_NOT_FOUND, "vnx_agent_register",
                   "the device id is not an open file descriptor%s%s%s%s",
                   path[0] != '\0' ? " (file '" : "", path,
                   path[0] != '\0' ? "')" : "",
                   is_missing ? ": the file does not exist" : "");
    vnxi_error_desc(error, i, row->desc.addr, row->desc.len, row->desc.dev);
    return VNX_ERR_NOT_FOUND;
}

vnx_status_t
vnxi_nixl_check_files(vnx_mem_t mem, const vnx_reg_desc_t *descs, size_t count,
                      vnx_error_t *error)
{
    for (size_t i = 0; mem == VNX_MEM_FILE && i < count; i++) {
        uint64_t fd = descs[i].desc.dev;
        if (fd > INT_MAX || fcntl((int)fd, F_GETFD) < 0) {
            return no_file(&descs[i], i, error);
        }
    }
    return VNX_OK;
}

/* -- After a failure -------------------------------------------------------
 */

typedef struct suspect {
    const vnxi_exfer_t *exfer;
    const vnxi_nixl_piece_t *piece;
    vnx_error_t *error;
    char path[PATH_SHOWN + 1];
} suspect_t;

/* The path that was registered, else the one that the system knows. */
static void
find_path(suspect_t *suspect)
{
    const vnx_desc_t *desc = &suspect->piece->desc;
    const vnxi_nixl_region_t *region =
        vnxi_nixl_region(vnxi_list_region_of(suspect->exfer->remote, desc));
    char link[48];

    if (region->meta_len > 0) {
        snprintf(suspect->path, sizeof suspect->path, "%.*s",
                 (int)region->meta_len, region->meta);
        return;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%" PRIu64, desc->dev);
    ssize_t len = readlink(link, suspect->path, sizeof suspect->path - 1);
    suspect->path[len > 0 ? len : 0] = '\0';
}

static bool __attribute__((format(printf, 3, 4)))
found(suspect_t *suspect, vnx_status_t status, const char *cause, ...)
{
    const vnx_desc_t *desc = &suspect->piece->desc;
    char text[VNX_ERROR_CAUSE_MAX];
    va_list args;

    va_start(args, cause);
    vsnprintf(text, sizeof text, cause, args);
    va_end(args);
    vnxi_error_set(suspect->error, status, "vnx_xfer_post",
                   "file '%s': %.140s", suspect->path, text);
    vnxi_error_desc(suspect->error, suspect->piece->place, desc->addr,
                    desc->len, desc->dev);
    return true;
}

static bool
read_fault(suspect_t *suspect, const struct stat *file)
{
    const vnx_desc_t *desc = &suspect->piece->desc;
    uint64_t size = (uint64_t)file->st_size;

    if (S_ISREG(file->st_mode) &&
        (desc->addr > size || desc->len > size - desc->addr)) {
        return found(
            suspect, VNX_ERR_BACKEND,
            "the row extends past the end of the file, which has %" PRIu64
            " bytes",
            size);
    }
    return false;
}

/* Space is short if the file system has less than the row needs beyond the
 * blocks of the file. */
static bool
write_fault(suspect_t *suspect, const struct stat *file)
{
    const vnx_desc_t *desc = &suspect->piece->desc;
    uint64_t size = (uint64_t)file->st_size;
    struct statvfs space;

    if (!S_ISREG(file->st_mode) || fstatvfs((int)desc->dev, &space) != 0) {
        return false;
    }
    uint64_t left = (uint64_t)space.f_bavail * space.f_frsize;
    uint64_t end = desc->addr + desc->len;
    uint64_t have = (uint64_t)file->st_blocks * 512;
    have = have > size ? have : size;
    uint64_t needs = end > have ? end - have : 0;
    needs = needs < desc->len ? needs : desc->len;
    if (left == 0 || left < needs) {
        return found(suspect, VNX_ERR_BACKEND,
                     "no space is left on its device (%" PRIu64
                     " bytes are free)",
                     left);
    }
    return false;
}

static bool
is_opened_for(int flags, vnx_op_t op)
{
    int mode = flags & O_ACCMODE;
    return mode == O_RDWR || mode == (op == VNX_OP_READ ? O_RDONLY : O_WRONLY);
}

static bool
piece_fault(suspect_t *suspect)
{
    vnx_op_t op = suspect->exfer->op;
    uint64_t fd = suspect->piece->desc.dev;
    struct stat file;

    find_path(suspect);
    int flags = fd <= INT_MAX ? fcntl((int)fd, F_GETFL) : -1;
    if (flags < 0 || fstat((int)fd, &file) != 0) {
        return found(suspect, VNX_ERR_BACKEND,
                     "its descriptor is not open any more");
    }
    if (!is_opened_for(flags, op)) {
        return found(suspect, VNX_ERR_BACKEND, "it was not opened for %s",
                     op == VNX_OP_READ ? "reading" : "writing");
    }
    return op == VNX_OP_READ ? read_fault(suspect, &file)
                             : write_fault(suspect, &file);
}

bool
vnxi_nixl_storage_fault(const vnxi_exfer_t *exfer, vnx_error_t *error)
{
    suspect_t suspect = {.exfer = exfer, .error = error};

    for (size_t i = 0; i < exfer->piece_count; i++) {
        suspect.piece = &exfer->pieces[i];
        if (piece_fault(&suspect)) {
            return true;
        }
    }
    return false;
}
