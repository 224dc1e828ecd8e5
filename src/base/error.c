#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

vnx_status_t
vnxi_error_set(vnx_error_t *error, vnx_status_t status, const char *operation,
               const char *cause, ...)
{
    if (error == NULL) {
        return status;
    }
    error->status = status;
    error->operation = operation;
    error->row = -1;
    error->addr = error->len = error->dev = 0;
    error->has_desc = 0;
    error->peer[0] = '\0';

    va_list args;
    va_start(args, cause);
    vsnprintf(error->cause, sizeof error->cause, cause, args);
    va_end(args);
    return status;
}

static void
text_add(char *text, size_t size, const char *more, va_list args)
{
    size_t len = strlen(text);

    vsnprintf(text + len, size - len, more, args);
}

void
vnxi_text_add(char *text, size_t size, const char *more, ...)
{
    va_list args;

    va_start(args, more);
    text_add(text, size, more, args);
    va_end(args);
}

void
vnxi_error_add(vnx_error_t *error, const char *more, ...)
{
    va_list args;

    if (error != NULL) {
        va_start(args, more);
        text_add(error->cause, sizeof error->cause, more, args);
        va_end(args);
    }
}

void
vnxi_error_peer(vnx_error_t *error, const void *name, size_t len)
{
    if (error == NULL) {
        return;
    }
    const unsigned char *bytes = name;
    size_t n = len < sizeof error->peer ? len : sizeof error->peer - 1;
    for (size_t i = 0; i < n; i++) {
        error->peer[i] = vnxi_error_printable(bytes[i]);
    }
    error->peer[n] = '\0';
}

void
vnxi_error_row(vnx_error_t *error, size_t row)
{
    if (error != NULL) {
        error->row = (int64_t)row;
    }
}

void
vnxi_error_desc(vnx_error_t *error, size_t row, uint64_t addr, uint64_t len,
                uint64_t dev)
{
    if (error == NULL) {
        return;
    }
    error->row = (int64_t)row;
    error->addr = addr;
    error->len = len;
    error->dev = dev;
    error->has_desc = 1;
}

vnx_status_t
vnxi_error_no_memory(vnx_error_t *error, const char *operation, size_t size)
{
    return vnxi_error_set(error, VNX_ERR_NO_MEMORY, operation,
                          "no memory for %zu bytes", size);
}

/* -- Descriptors ---------------------------------------------------------- */

#define SCARCE 32
#define POLL_MOST 256
#define COUNT_MOST (1 << 16)

/* Count the free descriptors below `limit`, and stop once they are `enough`.
 * Begins with the last ones: the kernel assigns the first, so those are free
 * unless nearly all are in use.  Uses poll(), because reading /proc/self/fd
 * needs a descriptor. */
static unsigned
count_free(unsigned limit, unsigned enough)
{
    unsigned free = 0, count;

    for (unsigned end = limit; end > 0 && free < enough; end -= count) {
        struct pollfd fds[POLL_MOST];
        count = end < POLL_MOST ? end : POLL_MOST;
        for (unsigned i = 0; i < count; i++) {
            fds[i] = (struct pollfd){.fd = (int)(end - count + i)};
        }
        if (poll(fds, count, 0) < 0) {
            return limit;
        }
        for (unsigned i = 0; i < count; i++) {
            free += (fds[i].revents & POLLNVAL) != 0;
        }
    }
    return free;
}

/* Whether nearly all descriptors are in use, and if so, how many.  A limit
 * that is too high to count up to is not close. */
static bool
are_scarce(unsigned *open_p, unsigned *limit_p)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur > COUNT_MOST) {
        return false;
    }
    *limit_p = (unsigned)limit.rlim_cur;
    unsigned free = count_free(*limit_p, SCARCE);
    *open_p = *limit_p - free;
    return free < SCARCE;
}

bool
vnxi_descriptors_are_scarce(void)
{
    unsigned open, limit;

    return are_scarce(&open, &limit);
}

#define USAGE "%u of %u in use (RLIMIT_NOFILE); raise it with ulimit -n"

const char *
vnxi_descriptors_text(char text[VNXI_ERRNO_TEXT])
{
    unsigned open, limit;

    text[0] = '\0';
    if (are_scarce(&open, &limit)) {
        snprintf(text, VNXI_ERRNO_TEXT, " (descriptors: " USAGE ")", open,
                 limit);
    }
    return text;
}

const char *
vnxi_errno_text(int err, char text[VNXI_ERRNO_TEXT])
{
    struct rlimit limit;

    errno = err;
    snprintf(text, VNXI_ERRNO_TEXT, "%m");
    if (err == ENFILE) {
        vnxi_text_add(text, VNXI_ERRNO_TEXT,
                      " (the limit of the whole system: fs.file-max)");
    } else if (err == EMFILE && getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        /* If the limit is too high to count, assume that all are in use. */
        unsigned most = (unsigned)limit.rlim_cur;
        vnxi_text_add(
            text, VNXI_ERRNO_TEXT, " (descriptors: " USAGE ")",
            most <= COUNT_MOST ? most - count_free(most, most) : most, most);
    }
    return text;
}

int
vnx_error_format(const vnx_error_t *error, char *buffer, int size)
{
    char row[128] = "", peer[VNX_ERROR_PEER_MAX + 16] = "";

    if (error->has_desc) {
        snprintf(row, sizeof row,
                 ": row %" PRId64 " (address 0x%" PRIx64 ", length %" PRIu64
                 ", device %" PRIu64 ")",
                 error->row, error->addr, error->len, error->dev);
    } else if (error->row >= 0) {
        snprintf(row, sizeof row, ": row %" PRId64, error->row);
    }
    if (error->peer[0] != '\0') {
        snprintf(peer, sizeof peer, "%s peer '%s'", row[0] != '\0' ? "," : ":",
                 error->peer);
    }
    return snprintf(buffer, size < 0 ? 0 : (size_t)size, "%s: %s%s%s: %s",
                    vnx_status_name(error->status), error->operation, row,
                    peer, error->cause);
}
