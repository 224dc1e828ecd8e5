#include "engine/native/shm/shm_wire.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "engine/native/shm/proc.h"

#define OPERATION "vnx_agent_load_metadata"
#define CREATE "vnx_agent_create_backend"

/* A reader accepts every minor version of its major version.  Later minor
 * versions append data, and may define flags that an older reader can ignore.
 */
#define MAJOR 1u
#define MINOR 0u

#define REGION_SHARED 0x1u

static void
write_head(vnxi_writer_t *writer, uint16_t flags)
{
    vnxi_write_u8(writer, MAJOR);
    vnxi_write_u8(writer, MINOR);
    vnxi_write_u16(writer, flags);
}

/* `what` names the data in errors: "SHM connection info". */
static vnx_status_t
read_head(vnxi_reader_t *reader, const char *what, uint16_t *flags_p,
          vnx_error_t *error)
{
    unsigned major_number = vnxi_read_u8(reader);
    vnxi_read_u8(reader); /* minor: its additions come after the known
                             fields */
    uint16_t flags = vnxi_read_u16(reader);
    if (reader->failed) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              "%s is cut off", what);
    }
    if (major_number != MAJOR) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              "%s has version %u, only %u is supported", what,
                              major_number, MAJOR);
    }
    *flags_p = flags;
    return VNX_OK;
}

/* -- Connection info ------------------------------------------------------ */

#define INFO "SHM connection info"

void
vnxi_shm_info_write(vnxi_writer_t *writer, const vnxi_shm_info_t *info)
{
    size_t start = writer->len;
    size_t socket_len = strnlen(info->socket, sizeof info->socket);
    write_head(writer, 0);
    vnxi_write_u32(writer, info->pid);
    vnxi_write_bytes(writer, info->boot, VNXI_SHM_ID_SIZE);
    vnxi_write_u64(writer, info->pid_namespace);
    vnxi_write_u64(writer, info->start_time);
    vnxi_write_u64(writer, info->nonce_addr);
    vnxi_write_u32(writer, info->uid);
    vnxi_write_u16(writer, (uint16_t)socket_len);
    vnxi_write_bytes(writer, info->socket, socket_len);
    if (!writer->failed) {
        vnxi_write_u64(writer,
                       vnxi_hash(writer->data + start, writer->len - start));
    }
}

/* False if the name is too long or empty, or contains a NUL. */
static bool
read_socket(vnxi_reader_t *reader, char *socket)
{
    size_t len = vnxi_read_u16(reader);
    const unsigned char *bytes = vnxi_read_bytes(reader, len);
    if (bytes == NULL || len == 0 || len >= VNXI_SHM_SOCKET_MAX ||
        memchr(bytes, '\0', len) != NULL) {
        return false;
    }
    memcpy(socket, bytes, len);
    socket[len] = '\0';
    return true;
}

vnx_status_t
vnxi_shm_info_read(const void *data, size_t len, vnxi_shm_info_t *info_p,
                   vnx_error_t *error)
{
    vnxi_reader_t reader = vnxi_reader(data, len);
    vnxi_shm_info_t info = {0};
    uint16_t flags = 0;
    vnx_status_t status = read_head(&reader, INFO, &flags, error);
    if (status != VNX_OK) {
        return status;
    }
    info.pid = vnxi_read_u32(&reader);
    const unsigned char *boot = vnxi_read_bytes(&reader, VNXI_SHM_ID_SIZE);
    if (boot != NULL) {
        memcpy(info.boot, boot, VNXI_SHM_ID_SIZE);
    }
    info.pid_namespace = vnxi_read_u64(&reader);
    info.start_time = vnxi_read_u64(&reader);
    info.nonce_addr = vnxi_read_u64(&reader);
    info.uid = vnxi_read_u32(&reader);
    bool socket_is_good = read_socket(&reader, info.socket);
    uint64_t hash = vnxi_hash(data, len - vnxi_reader_left(&reader));
    bool is_whole = vnxi_read_u64(&reader) == hash;
    if (reader.failed) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              INFO " is cut off");
    }
    if (!socket_is_good) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              INFO " has an invalid socket name");
    }
    /* For the kernel, 0 and numbers that are negative as pid_t mean other
     * processes. */
    if (info.pid == 0 || info.pid > INT_MAX) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              INFO " has an invalid process id %" PRIu32,
                              info.pid);
    }
    if (!is_whole) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              INFO " is damaged: its checksum is wrong");
    }
    *info_p = info;
    return VNX_OK;
}

/* -- This process --------------------------------------------------------- */

/* Read up to size - 1 bytes of a small file of /proc, NUL-terminated.  False
 * with errno set. */
static bool
read_proc(const char *path, char *text, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    ssize_t got = read(fd, text, size - 1);
    int failure = errno;
    close(fd);
    errno = failure;
    if (got < 0) {
        return false;
    }
    text[got] = '\0';
    return true;
}

/* Parse "8c1e9f0a-...": 16 bytes in hexadecimal, with hyphens anywhere. */
static bool
parse_id(const char *text, unsigned char *id)
{
    size_t digits = 0;
    for (; digits < 2 * (size_t)VNXI_SHM_ID_SIZE; text++) {
        const char digit[2] = {*text, '\0'};
        if (*text == '-') {
            continue;
        }
        if (!isxdigit((unsigned char)*text)) {
            errno = EINVAL;
            return false;
        }
        unsigned long value = strtoul(digit, NULL, 16);
        id[digits / 2] = (unsigned char)(id[digits / 2] << 4 | value);
        digits++;
    }
    return true;
}

vnx_status_t
vnxi_shm_info_local(vnxi_shm_info_t *info_p, vnx_error_t *error)
{
    char text[64];
    struct stat st;
    vnxi_shm_info_t info = *info_p;

    info.pid = (uint32_t)getpid();
    info.uid = (uint32_t)geteuid();
    if (!read_proc("/proc/sys/kernel/random/boot_id", text, sizeof text) ||
        !parse_id(text, info.boot)) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, CREATE,
                              "cannot read the boot id of this host: %s",
                              vnxi_errno(errno));
    }
    if (stat("/proc/self/ns/pid", &st) != 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, CREATE,
                              "cannot read the pid namespace: %m");
    }
    info.pid_namespace = st.st_ino;
    vnxi_proc_stat_t self;
    int cause = vnxi_proc_stat((pid_t)info.pid, &self);
    if (cause != 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, CREATE,
                              "cannot read the start time of process %" PRIu32
                              ": %s",
                              info.pid, vnxi_errno(cause));
    }
    info.start_time = self.start_time;
    *info_p = info;
    return VNX_OK;
}

/* -- Regions -------------------------------------------------------------- */

void
vnxi_shm_region_write(vnxi_writer_t *writer, const vnxi_map_info_t *map_info)
{
    if (map_info->fd < 0) {
        write_head(writer, 0);
        return;
    }
    write_head(writer, REGION_SHARED);
    vnxi_write_u32(writer, (uint32_t)map_info->fd);
    vnxi_write_u64(writer, map_info->offset);
    vnxi_write_u64(writer, map_info->st_dev);
    vnxi_write_u64(writer, map_info->st_ino);
}

vnx_status_t
vnxi_shm_region_read(const void *data, size_t len, vnxi_map_info_t *map_info_p,
                     vnx_error_t *error)
{
    vnxi_reader_t reader = vnxi_reader(data, len);
    vnxi_map_info_t map_info = VNXI_MAP_INFO_NONE;
    uint16_t flags = 0;
    vnx_status_t status = read_head(&reader, "SHM region", &flags, error);
    if (status != VNX_OK) {
        return status;
    }
    if ((flags & REGION_SHARED) != 0) {
        uint32_t fd = vnxi_read_u32(&reader);
        map_info.fd = (int)fd;
        map_info.offset = vnxi_read_u64(&reader);
        map_info.st_dev = vnxi_read_u64(&reader);
        map_info.st_ino = vnxi_read_u64(&reader);
        if (reader.failed) {
            return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                                  "SHM region is cut off");
        }
        if (fd > INT_MAX) {
            return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                                  "SHM region has an invalid descriptor "
                                  "%" PRIu32,
                                  fd);
        }
    }
    *map_info_p = map_info;
    return VNX_OK;
}
